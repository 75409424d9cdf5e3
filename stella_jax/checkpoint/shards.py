"""The tensors in a checkpoint's safetensors files: one `model.safetensors`, or shards with an index."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from stella_jax.checkpoint.directory import Directory
from stella_jax.errors import StellaError, join_words, short_repr

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
MAX_SHARDS = 1000  # the published checkpoints have two
MAX_DIMENSIONS = 64  # numpy's own limit
MAX_HEADER_BYTES = 2**20  # ten thousand tensors; the format allows 100 MB, which take 2 GB when parsed


@dataclass(frozen=True, slots=True)
class Tensor:
    """The location of one tensor; `array` maps it."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def array(self) -> np.ndarray:
        """The stored numbers as a read-only map of the file, which is closed with the array."""
        if 0 in self.shape:
            return np.empty(self.shape, DTYPES[self.dtype])
        return np.memmap(self.path, DTYPES[self.dtype], mode="r", offset=self.offset, shape=self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """A checked safetensors file; its header is kept as it is, so that the same file can be written again."""

    path: Path
    header: str
    tensors: tuple[Tensor, ...]


def weight_files(directory: Directory, folder: str) -> list[str]:
    """Relative paths of a module's safetensors files.

    Raises:
      StellaError: there are none (or only pickles, which are never opened), or the index is not valid.
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
            f"{where}: the weights are .bin pickles, which can run code and are never opened; save them as "
            "model.safetensors."
        )
    raise StellaError(f"{where}: no model.safetensors; download the whole checkpoint.")


def _indexed_files(directory: Directory, index: str) -> list[str]:
    names = directory.json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise StellaError(
            f"{directory.path(index)}: no weight_map from tensor names to files; download the file again."
        )
    files = sorted(set(names.values()))
    if len(files) > MAX_SHARDS:
        raise StellaError(f"{directory.path(index)}: {len(files)} shards; at most {MAX_SHARDS} are allowed.")
    folder = Path(index).parent
    outside = [name for name in files if Path(name).name != name or name in ("", "..")]
    if outside:
        raise StellaError(
            f"{directory.path(index)}: refers to {short_repr(outside[0])}; shards must be in the folder of the index."
        )
    missing = [name for name in files if not directory.has(str(folder / name))]
    if missing:
        raise StellaError(f"{directory.path(index)}: shards not found: {join_words(missing)}; download them.")
    return files


def open_shards(directory: Directory, folder: str) -> list[Shard]:
    """Opens and checks the weight files of a module."""
    return [_open(directory.path(name)) for name in weight_files(directory, folder)]


def _open(path: Path) -> Shard:
    header = _read_header(path)
    tensors = tuple(parse_header(path, header))
    duplicated = len({tensor.name for tensor in tensors}) < len(tensors)
    try:
        if not duplicated:  # duplicates are reported later, by name, with all other faults
            safe_open(path, framework="np")
    except SafetensorError as error:
        raise StellaError(_what_is_wrong(path, tensors, str(error))) from error
    return Shard(path, header, tensors)


def _read_header(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(size) if 2 <= size <= MAX_HEADER_BYTES else b""
    if len(header) != size or not header.startswith(b"{"):
        raise StellaError(f"{path}: {_other_content(path)}.")
    return header.decode(errors="replace")


def _other_content(path: Path) -> str:
    """Describes a file that is not a safetensors file."""
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not a safetensors file; run 'git lfs pull' or download the file itself"
    if start.startswith(b"<"):
        return "a web page, not a safetensors file; download the file again"
    if not start:
        return "empty; download the file again"
    return "not a safetensors file, or damaged at its start; download the file again"


def parse_header(path: Path, header: str) -> Iterator[Tensor]:
    """The tensors in the header of the file at `path`, including duplicates, which a plain dict would hide."""
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
        raise StellaError(f"{path}: damaged safetensors header; download the file again.") from error


def _what_is_wrong(path: Path, tensors: tuple[Tensor, ...], error: str) -> str:
    if all(tensor.dtype in DTYPES for tensor in tensors) and tensors:
        ends = [t.offset + int(np.prod(t.shape, dtype=object)) * DTYPES[t.dtype].itemsize for t in tensors]
        size, promised = path.stat().st_size, max(ends)
        if size < promised:
            return f"{path}: truncated ({size} bytes, but {promised} in its header); download it again."
        if size > promised:
            return f"{path}: damaged ({size - promised} bytes after the last tensor); download it again."
    reason = error.replace("\n", "\\n")
    return f"{path}: not a valid safetensors file ({reason}); download it again."
