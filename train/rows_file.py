"""Writer of rows to a .jsonl, .csv or .parquet file, atomically."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError
from stella_jax.readers.file_types import FileType, file_type
from stella_jax.readers.keep_open import KeepOpen
from stella_jax.storage.atomic import replacing

SUFFIXES = (".jsonl", ".csv", ".parquet")
GROUP_ROWS = 65_536

Rows = Iterable[dict[str, Any]]


def check_new_file(path: Path) -> FileType:
    """The type of a file to write.

    Raises:
      StellaError: it exists, or its type is unsupported.
    """
    found = file_type(path.name)
    if found is None or found.suffix not in SUFFIXES:
        raise StellaError(f"{path}: unsupported file type; choose .jsonl, .csv (each also .gz, .zst) or .parquet.")
    if path.exists() or path.is_symlink():
        raise StellaError(f"{path}: already exists; remove it or choose another name.")
    return found


def write_rows(path: Path, rows: Rows) -> None:
    """Writes at least one row to a new file; all rows have the first one's columns. Raises as `check_new_file`."""
    suffix, compression = check_new_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file, _compressed(cast(BinaryIO, file), compression) as stream:
        _WRITERS[suffix](stream, rows)


@contextmanager
def _compressed(file: BinaryIO, compression: str | None) -> Iterator[BinaryIO]:
    """A stream that compresses into a file, and leaves it open."""
    if compression is None:
        yield file
        return
    with pa.CompressedOutputStream(pa.PythonFile(KeepOpen(file), "w"), compression) as stream:
        yield cast(BinaryIO, stream)


def _write_jsonl(file: BinaryIO, rows: Rows) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _write_csv(file: BinaryIO, rows: Rows) -> None:
    """Writes CSV, with lists as JSON."""
    buffer = io.StringIO(newline="")
    write = csv.writer(buffer, lineterminator="\n").writerow
    for number, row in enumerate(rows):
        if number == 0:
            write(row)
        write(json.dumps(cell) if isinstance(cell, list) else cell for cell in row.values())
        file.write(buffer.getvalue().encode())
        buffer.seek(buffer.truncate(0))


def _write_parquet(file: BinaryIO, rows: Rows) -> None:
    rows, schema, writer = iter(rows), None, None
    while group := list(islice(rows, GROUP_ROWS)):
        table = pa.Table.from_pylist(group, schema)
        schema = table.schema
        writer = writer or pq.ParquetWriter(file, schema, compression="zstd")
        writer.write_table(table)
    assert writer
    writer.close()


_WRITERS: dict[str, Callable[[BinaryIO, Rows], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
