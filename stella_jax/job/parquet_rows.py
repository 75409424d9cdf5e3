"""Rows of .parquet files."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError, first_line
from stella_jax.job.columns import TEXT, Column, RawRow, present
from stella_jax.job.lines import decode
from stella_jax.job.location import Location
from stella_jax.job.rows import Marks

BATCH_ROWS = 1024
READ_BUFFER = 2**20


def read_parquet(
    location: Location, columns: Sequence[Column], start: int, offset: None = None
) -> Iterator[tuple[RawRow, None]]:
    """Every record from number `start` (from 0); strings as bytes, since a file may hold ones that are no UTF-8.

    Other values of columns that are copied are arrays of one.

    Raises:
      StellaError: the file is damaged, or lacks a column, or has it in a type that does not fit its kind.
    """
    done = start
    with location.open() as stored:
        try:
            with pq.ParquetFile(stored, buffer_size=READ_BUFFER, page_checksum_verification=True) as file:
                names = _names(location, file.schema_arrow, columns)
                copied = {column.name for column in columns if column.kind.copied}
                for batch in _batches(file, names, start):
                    for values in zip(*(_values(batch.column(name), name in copied) for name in names), strict=True):
                        yield dict(zip(names, values, strict=True)), None
                        done += 1
        except (pa.ArrowException, OSError) as error:
            where = f" after row {done}" if done else ""
            raise StellaError(
                f"{location} is not a valid Parquet file{where}: {first_line(error).rstrip('.')}."
            ) from error


def count_parquet(location: Location, columns: Sequence[Column]) -> tuple[int, Marks]:
    """How many records the file says that it holds, and marks: where row groups begin, with the bytes before, unpacked.

    Raises:
      pa.ArrowException, OSError: it cannot be read.
    """
    with location.open() as stored:
        metadata = pq.read_metadata(stored)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    records = accumulate((group.num_rows for group in groups), initial=0)
    sizes = accumulate((group.total_byte_size for group in groups), initial=0)
    return metadata.num_rows, list(zip(records, sizes, strict=True))


def _batches(file: pq.ParquetFile, names: list[str], start: int) -> Iterator[pa.RecordBatch]:
    """The batches from this record on; row groups before it are not read."""
    first = 0
    while first < file.num_row_groups and start >= (rows := file.metadata.row_group(first).num_rows):
        start -= rows
        first += 1
    groups = list(range(first, file.num_row_groups))
    if not groups:
        return
    for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
        skipped = min(start, batch.num_rows)
        start -= skipped
        yield batch.slice(skipped)


def _names(location: Location, schema: pa.Schema, columns: Sequence[Column]) -> list[str]:
    found = present(location, columns, schema.names)
    for name, kind, _ in found:
        type = schema.field(name).type
        if not kind.is_arrow(type.value_type if pa.types.is_dictionary(type) else type):
            raise StellaError(f"{location}: column {name!r} is of type {type}, not {kind.arrow}.")
    return list(dict.fromkeys(column.name for column in found))


def _values(column: pa.Array, copied: bool) -> list[object]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if TEXT.is_arrow(column.type):
        return column.cast(pa.large_binary()).to_pylist()
    # A copy keeps the column's own type: Python's values lose nanoseconds and more.
    return [column.slice(i, 1) for i in range(len(column))] if copied else column.to_pylist()


def parquet_row(row: RawRow, columns: Sequence[Column]) -> RawRow:
    """The same values, decoded."""
    return {name: decode(value) if type(value) is bytes else value for name, value in row.items()}


class RowGroup(NamedTuple):
    """Where a row group begins in its file, in bytes and in rows from 0, and how many rows it has."""

    offset: int
    first_row: int
    rows: int


def row_groups(location: Location) -> list[RowGroup]:
    """The row groups of a file, from its footer alone.

    Raises:
      StellaError: it is not a Parquet file.
    """
    with location.open() as stored:
        try:
            metadata = pq.read_metadata(stored)
        except (pa.ArrowException, OSError) as error:
            raise StellaError(f"{location} is not a valid Parquet file: {first_line(error).rstrip('.')}.") from error
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    firsts = accumulate((group.num_rows for group in groups), initial=0)
    return [RowGroup(_offset(group), first, group.num_rows) for group, first in zip(groups, firsts, strict=False)]


def _offset(group: pq.RowGroupMetaData) -> int:
    column = group.column(0)
    return min(x for x in (column.data_page_offset, column.dictionary_page_offset) if x)
