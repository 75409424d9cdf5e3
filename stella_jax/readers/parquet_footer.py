"""Sizes in the footer and the page headers of a Parquet file.

pyarrow reads them, too, but aborts the process if an entry of a column is damaged. They are structs of Thrift's compact
protocol (https://github.com/apache/parquet-format), read here into dictionaries by field number.
"""

import os
from functools import lru_cache
from io import BufferedReader
from typing import Any, NamedTuple

import pyarrow as pa

HEADER_BYTES = 64  # enough for the header of a dictionary page

Value = tuple[Any, int]


class ColumnChunk(NamedTuple):
    """A column of a row group, or one of the leaves of a nested column (list or struct).

    Attributes:
      path: the column's name, and in a nested column the names that lead to its leaf.
      unpacked, packed: its bytes, uncompressed and compressed.
      offset: of its first page.
      dictionary: the offset of its dictionary page, 0 if it has none.
    """

    path: tuple[str, ...]
    unpacked: int
    packed: int
    offset: int
    dictionary: int

    @property
    def column(self) -> str:
        """The name of the table's column; it may contain dots."""
        return self.path[0]


class RowGroup(NamedTuple):
    """A row group: its number of rows, and its columns."""

    rows: int
    chunks: list[ColumnChunk]


def read_row_groups(file: BufferedReader) -> list[RowGroup]:
    """The row groups of a file.

    Raises:
      pa.ArrowInvalid: the footer is damaged.
    """
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    if length + 8 > file.seek(0, os.SEEK_END):
        raise pa.ArrowInvalid("the footer is longer than the file")
    file.seek(-8 - length, os.SEEK_END)
    return list(_row_groups(file.read(length)))


@lru_cache(maxsize=4)  # a sample opens the same file again and again; a footer of many row groups takes seconds
def _row_groups(footer: bytes) -> tuple[RowGroup, ...]:
    try:
        return tuple(RowGroup(int(group[3]), [_chunk(column[3]) for column in group[1]]) for group in _parse(footer)[4])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise pa.ArrowInvalid("the footer lacks a field") from None


def _chunk(fields: dict[int, Any]) -> ColumnChunk:
    name, *inner = (part.decode(errors="replace") for part in fields[3])
    data, dictionary = int(fields[9]), max(0, fields.get(11, 0))
    return ColumnChunk((name, *inner), int(fields[6]), int(fields[7]), min(data, dictionary or data), dictionary)


def dictionary_bytes(file: BufferedReader, chunk: ColumnChunk) -> int:
    """The uncompressed size of the dictionary page, from its header; raises as `read_row_groups` does."""
    file.seek(chunk.dictionary)
    size = _parse(file.read(HEADER_BYTES)).get(2)
    if not isinstance(size, int):
        raise pa.ArrowInvalid("a page header lacks its size")
    return size


def _parse(data: bytes) -> dict[int, Any]:
    try:
        return _struct(data, 0)[0]
    except (IndexError, ValueError, RecursionError):
        raise pa.ArrowInvalid("a footer or page header is not a Thrift struct") from None


def _struct(data: bytes, at: int) -> Value:
    fields: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        field, at = (field + (head >> 4), at + 1) if head >> 4 else _signed(data, at + 1)
        fields[field], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> Value:
    match kind:
        case 1 | 2:
            return kind == 1, at
        case 3:
            return data[at], at + 1
        case 4 | 5 | 6:
            return _signed(data, at)
        case 7:
            return data[at : at + 8], at + 8
        case 8:
            length, at = _unsigned(data, at)
            return data[at : at + length], at + length
        case 9 | 10:
            return _list(data, at)
        case 12:
            return _struct(data, at)
    raise ValueError(kind)


def _list(data: bytes, at: int) -> Value:
    head = data[at]
    length, at = (head >> 4, at + 1) if head >> 4 < 15 else _unsigned(data, at + 1)
    values = []
    for _ in range(length):
        value, at = (data[at] == 1, at + 1) if head & 15 < 3 else _value(data, at, head & 15)
        values.append(value)
    return values, at


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
    return value | byte << shift, at + 1
