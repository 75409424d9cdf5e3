"""Rows of .parquet files."""

from collections.abc import Iterator, Sequence
from io import BufferedReader
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError, first_line
from stella_jax.readers.columns import TEXT, Column, RawRow, RowError, is_list, select_columns
from stella_jax.readers.lines import MAX_LINE_BYTES, decode
from stella_jax.readers.parquet_footer import ColumnChunk, dictionary_bytes, read_row_groups
from stella_jax.storage.location import Location

BATCH_ROWS = 1024
READ_BUFFER = 2**20
# Limits on the memory that a column takes: the bytes of a batch, or the rows of one in a larger row group...
BATCH_BYTES = 2**29
LARGE_GROUP_ROWS = 64
# ... the bytes that are converted to Python objects at a time ...
SLICE_BYTES = 2**26
# ... and a page. The footer does not state page sizes, and a page may be a whole row group; but a column that is larger
# than this and compresses better than this was made to exhaust memory.
UNPACKED_BYTES = 2**28
MAX_RATIO = 100


def read_parquet(
    location: Location, columns: Sequence[Column], start: int, offset: None = None
) -> Iterator[tuple[RawRow, None]]:
    """Every record from number `start` (from 0) on; strings as bytes, since they may be invalid UTF-8.

    Values of kept columns of other types are arrays of length one.

    Raises:
      StellaError: the file is damaged, lacks a column, or has one of the wrong type.
    """
    done = start
    with location.open() as stored:
        try:
            with pq.ParquetFile(stored, buffer_size=READ_BUFFER, page_checksum_verification=True) as file:
                names = _names(location, file.schema_arrow, columns)
                kept = {column.name for column in columns if column.kind.is_kept}
                for batch in _batches(location, stored, file, names, start):
                    for values in zip(*(_values(batch.column(name), name in kept) for name in names), strict=True):
                        yield dict(zip(names, values, strict=True)), None
                        done += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last one for a column name
            where = f" after row {done}" if done else ""
            raise invalid_parquet(location, error, where) from error


def _batches(
    location: Location, stored: BufferedReader, file: pq.ParquetFile, names: list[str], start: int
) -> Iterator[pa.RecordBatch]:
    """Batches from this record on; earlier row groups are not read."""
    for i, group in enumerate(read_row_groups(stored)):
        if start >= group.rows:
            start -= group.rows
            continue
        rows = min(_batch_rows(location, stored, chunk) for chunk in group.chunks if chunk.column in names)
        for batch in file.iter_batches(rows, row_groups=[i], columns=names, use_threads=False):
            skipped = min(start, batch.num_rows)
            start -= skipped
            yield from _slices(batch.slice(skipped))


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    rows = max(1, batch.num_rows * SLICE_BYTES // max(SLICE_BYTES, batch.nbytes))
    return (batch.slice(first, rows) for first in range(0, batch.num_rows, rows))


def _batch_rows(location: Location, stored: BufferedReader, chunk: ColumnChunk) -> int:
    """The number of rows for which the values of a column fit into memory."""
    if chunk.unpacked > max(UNPACKED_BYTES, MAX_RATIO * chunk.packed):
        sizes = f"{chunk.unpacked} bytes, compressed to {chunk.packed}"
        raise StellaError(
            f"{location}: column {chunk.column!r} has {sizes}, in one row group; write smaller row groups."
        )
    rows = BATCH_ROWS if chunk.unpacked <= BATCH_BYTES else LARGE_GROUP_ROWS
    if chunk.dictionary and rows * chunk.unpacked > BATCH_BYTES:  # each row may hold the largest value
        rows = min(rows, max(1, BATCH_BYTES // max(1, dictionary_bytes(stored, chunk))))
    return rows


def _names(location: Location, schema: pa.Schema, columns: Sequence[Column]) -> list[str]:
    found = select_columns(location, columns, schema.names)
    for name, kind, _ in found:
        type = schema.field(name).type
        if not kind.is_arrow(type.value_type if pa.types.is_dictionary(type) else type):
            raise StellaError(f"{location}: column {name!r} is {type}; convert it to {kind.arrow}.")
    return list(dict.fromkeys(column.name for column in found))


def _values(column: pa.Array, is_kept: bool) -> list[object]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if TEXT.is_arrow(column.type):
        return column.cast(pa.large_binary()).to_pylist()
    # A copy keeps the Arrow type: Python values would lose nanoseconds, for example.
    if is_kept:
        return [column.slice(i, 1) for i in range(len(column))]
    if is_list(column.type):  # of numbers
        return [value.values.to_numpy(zero_copy_only=False) if value.is_valid else None for value in column]
    return column.to_pylist()


def parquet_row(row: RawRow, columns: Sequence[Column]) -> RawRow:
    """The same values, decoded."""
    return {name: _decode(value) if type(value) is bytes else value for name, value in row.items()}


def _decode(value: bytes) -> str:
    if len(value) > MAX_LINE_BYTES:
        raise RowError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
    return decode(value)


class RowGroupRange(NamedTuple):
    """A row group: its byte offset, the number of its first row (from 0), and its number of rows."""

    offset: int
    first_row: int
    rows: int


def row_groups(location: Location) -> list[RowGroupRange]:
    """The row groups of a file, from its footer.

    Raises:
      StellaError: it is not a Parquet file.
    """
    with location.open() as stored:
        try:
            groups = read_row_groups(stored)
        except (pa.ArrowException, OSError) as error:
            raise invalid_parquet(location, error) from error
    firsts = accumulate((group.rows for group in groups), initial=0)
    offsets = (min(chunk.offset for chunk in group.chunks) for group in groups)
    return [RowGroupRange(*each) for each in zip(offsets, firsts, (group.rows for group in groups), strict=False)]


def invalid_parquet(location: Location, error: Exception, where: str = "") -> StellaError:
    """The error about a file that pyarrow cannot read."""
    return StellaError(f"{location}: not a valid Parquet file{where} ({first_line(error)}); copy or write it again.")
