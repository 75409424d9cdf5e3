"""The records of a file of any supported type, one after the other, parsed only where that is asked for."""

import gzip
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from stella_jax.errors import StellaError
from stella_jax.readers.columns import Column, RawRow, RowError
from stella_jax.readers.csv_rows import csv_row, read_csv
from stella_jax.readers.file_types import SUPPORTED, file_type
from stella_jax.readers.files import BadZstdFile
from stella_jax.readers.lines import json_row, read_lines, text_row
from stella_jax.readers.parquet_rows import parquet_row, read_parquet
from stella_jax.storage.location import Location

# What a compressed file raises that is cut off, or damaged.
FAULTS = (EOFError, gzip.BadGzipFile, zlib.error, BadZstdFile)


@dataclass(frozen=True, slots=True)
class Format:
    """How a type of file is read, in two steps, so that rows of finished parts are skipped without parsing them.

    Attributes:
      records: (location, columns, start, offset) -> every record from number `start`, as it lies in the file, or a
        RowError, and the offset of the record after it, None where the format knows none.
      parse: (record, columns) -> its values by column, None for a blank one; raises RowError.
      seeks: whether it knows offsets.
      splits: whether one can begin to read at other places than its beginning.
      skips_blank: whether blank records can be passed over many at a time.
    """

    records: Callable[[Location, Sequence[Column], int, Any], Iterator[tuple[Any, int | None]]]
    parse: Callable[[Any, Sequence[Column]], RawRow | None]
    seeks: bool = False
    splits: bool = False
    skips_blank: bool = False

    def row(self, record: Any, columns: Sequence[Column]) -> RawRow | RowError | None:
        """The values of a record by column, what is wrong with it, or None where it is blank."""
        if isinstance(record, RowError):
            return record
        try:
            return self.parse(record, columns)
        except RowError as error:
            return error


FORMATS = {
    ".jsonl": Format(read_lines, json_row, seeks=True, splits=True, skips_blank=True),
    ".txt": Format(read_lines, text_row, seeks=True, splits=True),
    ".csv": Format(read_csv, csv_row),
    ".parquet": Format(read_parquet, parquet_row, splits=True),
}


def format_of(location: Location, columns: Sequence[Column] = ()) -> Format:
    """The format of a file, by its name.

    Raises:
      StellaError: its type is not supported, or it is plain text, which has no second column.
    """
    found = file_type(location.name)
    if found is None:
        raise StellaError(f"{location}: unsupported file type; supported: {SUPPORTED}.")
    for column in columns[1:]:
        if found.suffix == ".txt" and column.needed and column.name != columns[0].name:
            raise StellaError(f"{location}: plain text has no column {column.name!r}; use .jsonl, .csv or .parquet.")
    return FORMATS[found.suffix]


class RecordReader:
    """A file's records one after the other, unparsed; `Format.row` parses them.

    Attributes:
      offset: where the next record begins, in bytes of the decompressed file; None where the format knows no offsets,
        or this pass not yet.

    Args:
      start: the number of the first one, from 0.
      offset: what `offset` was before that record in an earlier pass; without it, or in a format that knows none, the
        records before are read and dropped.

    Raises:
      StellaError: (the records) the file as a whole is damaged; says after which row.
    """

    def __init__(
        self, location: Location, format: Format, columns: Sequence[Column], start: int = 0, offset: int | None = None
    ):
        self.offset = (offset or None if start else 0) if format.seeks else None
        self._location = location
        self._format = format
        self._done = start
        self._records = format.records(location, columns, start, self.offset)

    def __iter__(self) -> "RecordReader":
        return self

    def __next__(self) -> Any:
        try:
            record, self.offset = next(self._records)
        except FAULTS as error:
            raise self._fault(error) from None
        self._done += 1
        return record

    def skip_blank(self) -> int:
        """Passes over blank records that come next, once one was read; returns how many.

        For .jsonl, of which a small archive may hold blank lines by the billion: most of a run at once, not always all.
        0 for other formats.
        """
        if not self._format.skips_blank:
            return 0
        try:
            count, self.offset = cast(Generator[Any, bool, None], self._records).send(True)
        except FAULTS as error:
            raise self._fault(error) from None
        self._done += count
        return count

    def _fault(self, error: Exception) -> StellaError:
        found = file_type(self._location.name)
        kind = found and found.compression
        if isinstance(error, EOFError):
            return StellaError(f"{self._location} is cut off after row {self._done}; its {kind} stream has no end.")
        where = f"is damaged after row {self._done}" if self._done else f"is not a valid {kind} file"
        return StellaError(f"{self._location} {where}: {error}.")


def read_rows(location: Location, columns: Sequence[Column]) -> Iterator[tuple[int, RawRow | RowError]]:
    """Every row of a file that is not blank, with its number from 1: its values by column, or what is wrong with it.

    Raises:
      StellaError: the file's type is not supported, it is damaged, or the header of a .csv or the schema of a .parquet
        file lacks a needed column.
    """
    format = format_of(location, columns)
    records, number = RecordReader(location, format, columns), 0
    for record in records:
        number += 1
        row = format.row(record, columns)
        if row is None:
            number += records.skip_blank()
        else:
            yield number, row
