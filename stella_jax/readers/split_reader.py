"""Reads the rows of a split in order, from any position on."""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from sys import maxsize
from typing import Any, NamedTuple

from stella_jax.errors import ErrorWithFields, StellaError
from stella_jax.readers.inputs import InputFile
from stella_jax.readers.parquet_rows import row_groups
from stella_jax.readers.rows import Rejected, Row, RowFields
from stella_jax.readers.splits import ByteRange, Split
from stella_jax.storage.remote_file import BLOCK


class Position(NamedTuple):
    """A position in a split, at which reading can resume.

    Attributes:
      byte_range: the number of a byte range of the split.
      records: number of earlier records of the byte range, including blank ones.
      offset: of the next record in its file, in uncompressed bytes; -1 if the format has no offsets.
    """

    byte_range: int = 0
    records: int = 0
    offset: int = -1


# Bytes read beyond a byte range, for the end of its last line.
TAIL = 2**15

BEGINNING = Position()
END: Any = object()


class PositionedRow(NamedTuple):
    """A row, the number of its input file, and the position after it."""

    row: Row | Rejected
    input: int
    after: Position


class InputError(ErrorWithFields):
    """The file with the number `input` cannot be read, or not to its end."""

    def __init__(self, message: str, input: int):
        super().__init__(message)
        self.input = input


def read_split(
    inputs: Sequence[InputFile], split: Split, fields: RowFields, start: Position = BEGINNING
) -> Iterator[PositionedRow]:
    """The rows of a split from a position on, without blank records.

    Raises:
      InputError: an input is damaged or lacks a column; earlier rows are yielded first.
    """
    for i, byte_range in enumerate(split.byte_ranges[start.byte_range :], start.byte_range):
        at = start if i == start.byte_range else Position(i)
        try:
            yield from _rows(inputs[byte_range.input], byte_range, fields, at)
        except StellaError as error:
            raise InputError(str(error), byte_range.input) from error


def _rows(file: InputFile, byte_range: ByteRange, fields: RowFields, at: Position) -> Iterator[PositionedRow]:
    read = _lines_of_range if file.counts_bytes else _numbered
    records = read(file, byte_range, fields, at)
    record = next(records, None)
    while record is not None:
        row = file.row(record.number, record.content, fields)
        if row is not None:
            yield PositionedRow(row, byte_range.input, Position(at.byte_range, record.done, record.offset))
        try:
            record = records.send(row is None)
        except StopIteration:
            record = None


class _Record(NamedTuple):
    """A record, its number in the file, the number of records of its byte range up to it, and the offset after it."""

    content: Any
    number: int
    done: int
    offset: int


# The caller sends whether the last record was blank, to skip many blank ones at once.
_Records = Generator[_Record, bool, None]


def _numbered(file: InputFile, byte_range: ByteRange, fields: RowFields, at: Position) -> _Records:
    first, count = _rows_of_range(file, byte_range) if file.is_cut else (0, None)
    reader = file.records(fields, first + at.records, None if at.offset < 0 else at.offset)
    done, stop = at.records, maxsize if count is None else count
    while done < stop and (content := next(reader, END)) is not END:
        done += 1
        if (yield _Record(content, first + done, done, -1 if reader.offset is None else reader.offset)):
            done += reader.skip_blank()


def _lines_of_range(file: InputFile, byte_range: ByteRange, fields: RowFields, at: Position) -> _Records:
    """Lines that begin in a byte range; the end of the line before it is skipped."""
    begins_inside = at.records == 0 and byte_range.start > 0
    offset, done = byte_range.start - 1 if begins_inside else max(0, at.offset), at.records
    location = replace(file.location, block=min(BLOCK, byte_range.stop - offset + TAIL))
    lines: Any = file.format.records(location, fields.columns, 0, offset)
    if begins_inside:
        _, offset = next(lines, (None, byte_range.stop))
    while offset < byte_range.stop and (found := next(lines, None)) is not None:
        content, after = found
        done += 1
        is_blank = yield _Record(content, offset, done, after)
        offset = after
        if is_blank and file.format.skips_blank:
            count, offset = lines.send(True)
            done += count


def _rows_of_range(file: InputFile, byte_range: ByteRange) -> tuple[int, int]:
    """The first record and the number of records of the row groups that begin in a byte range."""
    groups = row_groups(file.location)
    inside = [group for group in groups if byte_range.start <= group.offset < byte_range.stop]
    return (inside[0].first_row if inside else 0), sum(group.rows for group in inside)


class RowsDigest:
    """A hash of rows, which shows whether they are the same when read again."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, row: Row | Rejected) -> None:
        text = row.text if isinstance(row, Row) else "\1"
        if not isinstance(text, str):
            query, text = text
            self._hash.update(f"{len(query)}\0{query}".encode())
        self._hash.update(f"{row.input}\0{row.number}\0{row.id}\0{text}\0".encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
