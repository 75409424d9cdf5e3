"""Writes a safetensors file tensor by tensor, in any order; the library's own writer needs all tensors in memory."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from stella_jax.checkpoint.shards import DTYPES, parse_header

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def new_header(tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> str:
    """A header as the library writes it: wider dtypes first, then by name, padded to 8 bytes."""
    order = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        dtype, shape = tensors[name]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
    return header + " " * (-len(header.encode()) % 8)


class SafetensorsWriter:
    """A file with a given header; `write` puts a tensor at its offset in the header.

    Leaving the `with` block without an error checks that every tensor was written, and flushes the file.
    """

    def __init__(self, path: Path, header: str):
        raw = header.encode()
        self._tensors = {tensor.name: tensor for tensor in parse_header(path, header)}
        self._unwritten = set(self._tensors)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(raw)) + raw)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes a tensor, whose dtype and shape must match the header."""
        tensor = self._tensors[name]
        if array.shape != tensor.shape or array.dtype != DTYPES[tensor.dtype]:
            raise ValueError(f"{name}: {array.dtype} {array.shape} is not the header's {tensor.dtype} {tensor.shape}")
        self._file.seek(tensor.offset)
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._unwritten.discard(name)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with self._file:
            if kind is None:
                if self._unwritten:
                    raise ValueError(f"never written: {sorted(self._unwritten)}")
                self._file.flush()
