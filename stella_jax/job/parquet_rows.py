"""Rows of .parquet files."""

from collections.abc import Iterator, Sequence
from io import BufferedReader
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError, first_line
from stella_jax.job.columns import TEXT, Column, RawRow, RowError, present
from stella_jax.job.lines import LONGEST, decode
from stella_jax.job.location import Location
from stella_jax.job.parquet_footer import Chunk, dictionary_bytes, read_row_groups
from stella_jax.job.rows import Marks

BATCH_ROWS = 1024
READ_BUFFER = 2**20
# Bounds on what is in memory of a column at once: a batch of so many bytes, or in larger row groups of so many rows...
BATCH_BYTES = 2**29
LARGE_GROUP_ROWS = 64
# ... of which so much is made Python's at a time ...
SLICE_BYTES = 2**26
# ... and a page. The footer does not tell their sizes, and one page may be all of a row group: but only one that was
# made to do harm packs more than so much so well.
UNPACKED_BYTES = 2**28
LARGEST_RATIO = 100


def read_parquet(
    location: Location, columns: Sequence[Column], start: int, offset: None = None
) -> Iterator[tuple[RawRow, None]]:
    """Every record from number `start` (from 0); strings as bytes, since a file may hold ones that are no UTF-8.

    Raises:
      StellaError: the file is damaged, or lacks a column, or has it in a type that does not fit its kind.
    """
    done = start
    with location.open() as stored:
        try:
            with pq.ParquetFile(stored, buffer_size=READ_BUFFER, page_checksum_verification=True) as file:
                names = _names(location, file.schema_arrow, columns)
                for batch in _batches(location, stored, file, names, start):
                    for values in zip(*(_values(batch.column(name)) for name in names), strict=True):
                        yield dict(zip(names, values, strict=True)), None
                        done += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last in a column's name
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


def _batches(
    location: Location, stored: BufferedReader, file: pq.ParquetFile, names: list[str], start: int
) -> Iterator[pa.RecordBatch]:
    """The batches from this record on; row groups before it are not read."""
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


def _batch_rows(location: Location, stored: BufferedReader, chunk: Chunk) -> int:
    """Of how many rows the values of a column fit into memory, whatever its pages hold."""
    if chunk.unpacked > max(UNPACKED_BYTES, LARGEST_RATIO * chunk.packed):
        sizes = f"{chunk.unpacked} bytes, packed into {chunk.packed}"
        raise StellaError(
            f"{location}: column {chunk.column!r} has {sizes}, in one row group; write smaller row groups."
        )
    rows = BATCH_ROWS if chunk.unpacked <= BATCH_BYTES else LARGE_GROUP_ROWS
    if chunk.dictionary and rows * chunk.unpacked > BATCH_BYTES:  # each row may be its largest value
        rows = min(rows, max(1, BATCH_BYTES // max(1, dictionary_bytes(stored, chunk))))
    return rows


def _names(location: Location, schema: pa.Schema, columns: Sequence[Column]) -> list[str]:
    found = present(location, columns, schema.names)
    for name, kind, _ in found:
        type = schema.field(name).type
        if not kind.is_arrow(type.value_type if pa.types.is_dictionary(type) else type):
            raise StellaError(f"{location}: column {name!r} is of type {type}, not {kind.arrow}.")
    return list(dict.fromkeys(column.name for column in found))


def _values(column: pa.Array) -> list[object]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return (column.cast(pa.large_binary()) if TEXT.is_arrow(column.type) else column).to_pylist()


def parquet_row(row: RawRow, columns: Sequence[Column]) -> RawRow:
    """The same values, decoded."""
    return {name: _decode(value) if type(value) is bytes else value for name, value in row.items()}


def _decode(value: bytes) -> str:
    if len(value) > LONGEST:
        raise RowError(f"longer than {LONGEST >> 20} MiB")
    return decode(value)
