"""The rows of a split, in order, from any position on."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from stella_jax.job.inputs import InputFile
from stella_jax.job.parquet_rows import row_groups
from stella_jax.job.rows import Fields, Rejected, Row
from stella_jax.job.splits import Piece, Split


class Position(NamedTuple):
    """Where reading of a split goes on.

    Attributes:
      piece: the number of a piece of the split.
      records: records of the piece that come before, blank ones included.
      offset: of the next record in its file, in uncompressed bytes; -1 where the format has no offsets.
    """

    piece: int = 0
    records: int = 0
    offset: int = -1


BEGINNING = Position()


class PositionedRow(NamedTuple):
    """A row, the number of its input file, and the position after it."""

    row: Row | Rejected
    input: int
    after: Position


def read_split(
    inputs: Sequence[InputFile], split: Split, fields: Fields, start: Position = BEGINNING
) -> Iterator[PositionedRow]:
    """The rows of a split from a position on; blank records are left out.

    Raises:
      StellaError: an input is damaged, or has no such column; the rows before come first.
    """
    for i, piece in enumerate(split.pieces[start.piece :], start.piece):
        file = inputs[piece.input]
        at = start if i == start.piece else Position(i)
        for records, (number, record, offset) in enumerate(_numbered(file, piece, fields, at), at.records + 1):
            row = file.row(number, record, fields)
            if row is not None:
                yield PositionedRow(row, piece.input, Position(i, records, offset))


def _numbered(file: InputFile, piece: Piece, fields: Fields, at: Position) -> Iterator[tuple[int, Any, int]]:
    """(number of the record in its file, record, offset after it)."""
    if file.counts_bytes:
        yield from _lines_of_range(file, piece, fields, at)
        return
    first, count = _rows_of_range(file, piece) if file.is_cut else (0, None)
    reader = file.records(fields, first + at.records, None if at.offset < 0 else at.offset)
    stop = None if count is None else max(0, count - at.records)
    for number, record in enumerate(islice(reader, stop), first + at.records + 1):
        yield number, record, -1 if reader.offset is None else reader.offset


def _lines_of_range(file: InputFile, piece: Piece, fields: Fields, at: Position) -> Iterator[tuple[int, Any, int]]:
    """Lines that begin in a byte range; the one that begins before it is read over."""
    begins_inside = at.records == 0 and piece.start > 0
    offset = piece.start - 1 if begins_inside else max(0, at.offset)
    lines = file.format.records(file.location, fields.columns, 0, offset)
    if begins_inside:
        offset = _after(next(lines, (None, piece.stop)))
    while offset < piece.stop and (found := next(lines, None)) is not None:
        yield offset, found[0], _after(found)
        offset = _after(found)


def _after(found: tuple[Any, int | None]) -> int:
    assert found[1] is not None  # lines have offsets
    return found[1]


def _rows_of_range(file: InputFile, piece: Piece) -> tuple[int, int]:
    """The first record, and how many there are, of the row groups that begin in a byte range."""
    groups = row_groups(file.location)
    inside = [group for group in groups if piece.start <= group.offset < piece.stop]
    return (inside[0].first_row if inside else 0), sum(group.rows for group in inside)


class RowsDigest:
    """A hash of rows, by which they are known again."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, row: Row | Rejected) -> None:
        text = row.text if isinstance(row, Row) else "\1"
        self._hash.update(f"{row.input}\0{row.number}\0{row.id}\0{text}\0".encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
