"""The tensors of a checkpoint's safetensors files: one `model.safetensors`, or shards under an index."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from stella_jax.directory import Directory
from stella_jax.errors import StellaError, join_words, short_repr

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
MAX_SHARDS = 1000  # the published checkpoints have two
MAX_DIMENSIONS = 64  # numpy's own limit
LARGEST_HEADER = 2**20  # ten thousand tensors; the format itself goes to 100 MB, which take 2 GB when parsed


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies: mapped, not read, until `array` is called."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def array(self) -> np.ndarray:
        """The stored numbers as a read-only map of the file, which goes away with the array."""
        if 0 in self.shape:
            return np.empty(self.shape, DTYPES[self.dtype])
        return np.memmap(self.path, DTYPES[self.dtype], mode="r", offset=self.offset, shape=self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file, checked; its header is kept as it was written, to write the same file again."""

    path: Path
    header: str
    tensors: tuple[Tensor, ...]


def weight_files(directory: Directory, folder: str) -> list[str]:
    """Relative names of the safetensors files with a module's weights.

    Raises:
      StellaError: there are none (or only pickles, which are never opened), or the index is unsound.
    """
    prefix = f"{folder}/" if folder else ""
    if directory.has(f"{prefix}model.safetensors"):
        return [f"{prefix}model.safetensors"]
    index = f"{prefix}model.safetensors.index.json"
    if directory.has(index):
        return [prefix + name for name in _indexed_files(directory, index)]
    where = directory.root / folder
    if list(where.glob("*.bin")):
        raise StellaError(
            f"{where} has its weights only as .bin pickles, which can run code and are never opened; save them as "
            "model.safetensors first."
        )
    raise StellaError(f"{where} has no model.safetensors.")


def _indexed_files(directory: Directory, index: str) -> list[str]:
    names = directory.json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise StellaError(f"{directory.path(index)} has no weight_map from tensor names to files.")
    files = sorted(set(names.values()))
    if len(files) > MAX_SHARDS:
        raise StellaError(f"{directory.path(index)} names {len(files)} shards, and {MAX_SHARDS} are allowed.")
    folder = Path(index).parent
    outside = [name for name in files if Path(name).name != name or name in ("", "..")]
    if outside:
        raise StellaError(
            f"{directory.path(index)} points at {short_repr(outside[0])}; shards must lie beside the index."
        )
    missing = [name for name in files if not directory.has(str(folder / name))]
    if missing:
        raise StellaError(f"{directory.path(index)} names shards that are missing: {join_words(missing)}.")
    return files


def open_shards(directory: Directory, folder: str) -> list[Shard]:
    """Opens and checks the weight files of a module."""
    return [_open(directory.path(name)) for name in weight_files(directory, folder)]


def _open(path: Path) -> Shard:
    header = _read_header(path)
    tensors = tuple(parse_header(path, header))
    duplicated = len({tensor.name for tensor in tensors}) < len(tensors)
    try:
        if not duplicated:  # a duplicate is reported with all other faults, by name
            safe_open(path, framework="np")
    except SafetensorError as error:
        raise StellaError(_what_is_wrong(path, tensors, str(error))) from error
    return Shard(path, header, tensors)


def _read_header(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(size) if 2 <= size <= LARGEST_HEADER else b""
    if len(header) != size or not header.startswith(b"{"):
        raise StellaError(f"{path} is not a safetensors file: {_guess(path)}.")
    return header.decode(errors="replace")


def _guess(path: Path) -> str:
    """What stands in place of a safetensors file."""
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; run 'git lfs pull' or download the file itself"
    if start.startswith(b"<"):
        return "it is a web page, probably saved in place of the download; download it again"
    if not start:
        return "it is empty; download it again"
    return "its header is damaged or cut off; download it again"


def parse_header(path: Path, header: str) -> Iterator[Tensor]:
    """The tensors that the header of the file at `path` lists, duplicates too (a plain dict would swallow them)."""
    try:
        entries: list[tuple[str, Any]] = json.loads(header, object_pairs_hook=list)
        base = 8 + len(header.encode())
        for name, fields in entries:
            if name != "__metadata__":
                fields = dict(fields)
                begin, _ = fields["data_offsets"]
                shape = tuple(map(int, fields["shape"]))
                if len(shape) > MAX_DIMENSIONS or not all(0 <= size < 2**63 for size in (*shape, int(begin))):
                    raise ValueError(name)
                yield Tensor(path, name, str(fields["dtype"]), shape, base + int(begin))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise StellaError(f"{path} is not a safetensors file: its header is damaged; download it again.") from error


def _what_is_wrong(path: Path, tensors: tuple[Tensor, ...], error: str) -> str:
    if all(tensor.dtype in DTYPES for tensor in tensors) and tensors:
        ends = [t.offset + int(np.prod(t.shape, dtype=object)) * DTYPES[t.dtype].itemsize for t in tensors]
        size, promised = path.stat().st_size, max(ends)
        if size < promised:
            return f"{path} is truncated: its header promises {promised} bytes, it has {size}; download it again."
        if size > promised:
            return f"{path} has {size - promised} bytes after its last tensor; it is damaged, download it again."
    reason = error.replace("\n", "\\n")
    return f"{path} is not a valid safetensors file: {reason}; download it again."
