"""Helpers of the tests of readers."""

import gzip
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_jax import StellaError
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.records import RecordReader
from stella_jax.readers.rows import RowFields

FIELDS = RowFields()


def rows_of(path: Path, fields: RowFields = FIELDS, start: int = 0) -> list:
    [source] = open_inputs([path], fields)
    rows = (source.row(i, record, fields) for i, record in enumerate(source.records(fields, start), start + 1))
    return [row for row in rows if row is not None]


def iterate_rows(path: Path) -> Iterator:
    [source] = open_inputs([path], FIELDS)
    return (source.row(i, record, FIELDS) for i, record in enumerate(source.records(FIELDS), 1))


def rows_before_error(path: Path) -> tuple[list, str]:
    """The rows before the fault of a damaged file, and the error."""
    rows = []
    with pytest.raises(StellaError) as error:
        rows.extend(iterate_rows(path))
    return rows, str(error.value)


def only_row(path: Path, content: bytes, fields: RowFields = FIELDS):
    path.write_bytes(content)
    [row] = rows_of(path, fields)
    return row


def records_of(path: Path, start: int = 0, offset: int | None = None) -> RecordReader:
    [source] = open_inputs([path], FIELDS)
    return source.records(FIELDS, start, offset)


def compressed(name: str, content: bytes) -> bytes:
    """The content, compressed as the file name says."""
    if name.endswith(".zst"):
        return pa.Codec("zstd").compress(content, asbytes=True)
    return gzip.compress(content) if name.endswith(".gz") else content


def write_table(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def peak_memory(action: Callable[[], object]) -> int:
    """The most bytes of Python objects that exist during an action."""
    tracemalloc.start()
    action()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak
