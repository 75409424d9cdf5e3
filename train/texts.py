"""A column of texts, stored as Arrow strings and read as a sequence of str."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stella_jax.readers.columns import RowError

CHUNK_ROWS = 8192


class Texts(Sequence[str]):
    """A sequence of str on top of an Arrow array, which has no Python object for each text.

    Attributes:
      array: of large strings.
    """

    __slots__ = ("array",)

    def __init__(self, array: pa.ChunkedArray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: Any) -> Any:
        """One text, or those of a slice."""
        return Texts(self.array[row]) if isinstance(row, slice) else self.array[int(row)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self.array.chunks:
            yield from chunk.to_pylist()

    def take(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The texts of some rows."""
        return [self.array[int(row)].as_py() for row in rows]


class TextsBuilder:
    """Builder of a column of texts; `name` is for errors."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._chunks: list[pa.Array] = []
        self._next: list[str] = []

    def checked(self, value: str | int) -> str:
        """A row's value as str; raises RowError if it is empty."""
        text = str(value)
        if not text.strip():
            raise RowError(f"{self._name} is empty")
        return text

    def append(self, text: str) -> None:
        self._next.append(text)
        if len(self._next) == CHUNK_ROWS:
            self._flush()

    def finish(self) -> Texts:
        """The column."""
        self._flush()
        return Texts(pa.chunked_array(self._chunks, pa.large_string()))

    def _flush(self) -> None:
        self._chunks.append(pa.array(self._next, pa.large_string()))
        self._next = []


def text_codes(columns: Sequence[Texts]) -> np.ndarray:
    """(rows, columns) int32: a code for each text, from 0, equal for equal texts in any column.

    Texts are compared by 64-bit hashes, which take less memory; a million texts have a collision with a probability of
    3e-8.
    """
    hashes = np.empty((len(columns), len(columns[0])), np.uint64)
    for row, column in zip(hashes, columns, strict=True):
        row[:] = np.fromiter(map(_hash, column), np.uint64, len(column))
    codes = np.unique(hashes.T, return_inverse=True)[1].astype(np.int32)
    return codes.reshape(hashes.T.shape)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
