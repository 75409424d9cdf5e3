"""Rows of .parquet files."""

from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError, listed, reason_of
from stella_jax.job.lines import decode
from stella_jax.job.location import Location
from stella_jax.job.rows import MISSING, Cells, Fields, Marks

BATCH_ROWS = 1024
READ_BUFFER = 2**20


def read_parquet(location: Location, fields: Fields, start: int, offset: None = None) -> Iterator[tuple[Cells, None]]:
    """Every record from number `start` (from 0); strings as bytes, since a file may hold ones that are no UTF-8.

    Raises:
      StellaError: the file is damaged, or lacks a field, or has it in a type that is no text (or, for ids, no number).
    """
    done = start
    with location.open() as stored:
        try:
            with pq.ParquetFile(stored, buffer_size=READ_BUFFER, page_checksum_verification=True) as file:
                columns = _columns(location, file.schema_arrow, fields)
                for batch in _batches(file, columns, start):
                    for cells in _cells(batch, fields):
                        yield cells, None
                        done += 1
        except (pa.ArrowException, OSError) as error:
            where = f" after row {done}" if done else ""
            raise StellaError(f"{location} is no sound Parquet file{where}: {reason_of(error).rstrip('.')}.") from error


def count_parquet(location: Location, fields: Fields) -> tuple[int, Marks]:
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


def _batches(file: pq.ParquetFile, columns: list[str], start: int) -> Iterator[pa.RecordBatch]:
    """The batches from this record on; row groups before it are not read."""
    first = 0
    while first < file.num_row_groups and start >= (rows := file.metadata.row_group(first).num_rows):
        start -= rows
        first += 1
    groups = list(range(first, file.num_row_groups))
    if not groups:
        return
    for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
        skipped = min(start, batch.num_rows)
        start -= skipped
        yield batch.slice(skipped)


def _columns(location: Location, schema: pa.Schema, fields: Fields) -> list[str]:
    wanted = [fields.text, fields.id_name]
    if fields.id is None and "id" not in schema.names:
        wanted.pop()
    for name in wanted:
        if schema.names.count(name) != 1:
            many = "more than one column" if name in schema.names else "no column"
            raise StellaError(f"{location} has {many} {name!r}; its columns are {listed(schema.names)}.")
        kind = _value_type(schema.field(name).type)
        if not _is_string(kind) and (name == fields.text or not pa.types.is_integer(kind)):
            need = "string" if name == fields.text else "string or integer"
            raise StellaError(f"{location}: column {name!r} is of type {schema.field(name).type}, not {need}.")
    return list(dict.fromkeys(wanted))


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _cells(batch: pa.RecordBatch, fields: Fields) -> Iterator[Cells]:
    texts = _values(batch.column(fields.text))
    if fields.id_name in batch.schema.names:
        ids = _values(batch.column(fields.id_name))
    else:
        ids = [MISSING] * len(texts)
    return map(Cells, texts, ids)


def _values(column: pa.Array) -> list[object]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return (column.cast(pa.large_binary()) if _is_string(column.type) else column).to_pylist()


def parquet_cells(cells: Cells, fields: Fields) -> Cells:
    """The same cells, decoded."""
    return Cells(*(decode(value) if isinstance(value, bytes) else value for value in cells))
