"""The records of a file of any supported type. They are parsed in a second step, so that skipping them is fast."""

import gzip
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from stella_jax.errors import StellaError
from stella_jax.readers.columns import Column, RawRow, RowError
from stella_jax.readers.csv_rows import csv_row, read_csv
from stella_jax.readers.decompress import BadZstdFile
from stella_jax.readers.file_types import SUPPORTED, file_type
from stella_jax.readers.lines import json_row, read_lines, text_row
from stella_jax.readers.parquet_rows import parquet_row, read_parquet
from stella_jax.storage.location import Location

# Raised by a compressed file that is truncated or damaged.
COMPRESSION_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, BadZstdFile)


@dataclass(frozen=True, slots=True)
class Format:
    """How a type of file is read.

    Attributes:
      records: (location, columns, start, offset) -> every record from number `start` on, unparsed or a RowError, with
        the offset of the next record, None if the format has no offsets.
      parse: (record, columns) -> its values by column, None for a blank one; raises RowError.
      seeks: whether it has offsets.
      splits: whether reading can start in the middle of a file.
      skips_blank: whether blank records can be skipped many at a time.
    """

    records: Callable[[Location, Sequence[Column], int, Any], Iterator[tuple[Any, int | None]]]
    parse: Callable[[Any, Sequence[Column]], RawRow | None]
    seeks: bool = False
    splits: bool = False
    skips_blank: bool = False

    def row(self, record: Any, columns: Sequence[Column]) -> RawRow | RowError | None:
        """The values of a record by column, its error, or None if it is blank."""
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
      StellaError: its type is not supported, or it is plain text and a second column is needed.
    """
    found = file_type(location.name)
    if found is None:
        raise StellaError(f"{location}: unsupported file type; supported: {SUPPORTED}.")
    for column in columns[1:]:
        if found.suffix == ".txt" and column.needed and column.name != columns[0].name:
            raise StellaError(f"{location}: plain text has no column {column.name!r}; use .jsonl, .csv or .parquet.")
    return FORMATS[found.suffix]


class RecordReader:
    """Iterates over a file's unparsed records; `Format.row` parses them.

    Attributes:
      offset: of the next record, in bytes of the decompressed file; None if the format has no offsets, or if it is not
        known yet.

    Args:
      start: the number of the first record, from 0.
      offset: `offset` before that record in an earlier pass; without it, or if the format has no offsets, the records
        before it are read and dropped.

    Raises:
      StellaError: (while iterating) the file is damaged; says after which row.
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
        except COMPRESSION_ERRORS as error:
            raise self._fault(error) from None
        self._done += 1
        return record

    def skip_blank(self) -> int:
        """Skips blank records after one was read; returns their number.

        In .jsonl files, since a small archive may hold billions of blank lines: many at once, not always all of them. 0
        for other formats.
        """
        if not self._format.skips_blank:
            return 0
        try:
            count, self.offset = cast(Generator[Any, bool, None], self._records).send(True)
        except COMPRESSION_ERRORS as error:
            raise self._fault(error) from None
        self._done += count
        return count

    def _fault(self, error: Exception) -> StellaError:
        found = file_type(self._location.name)
        kind = found and found.compression
        if isinstance(error, EOFError):
            what, why = f"cut off after row {self._done}", f"its {kind} stream has no end"
        else:
            what = f"damaged after row {self._done}" if self._done else f"not a valid {kind} file"
            why = str(error).rstrip(".")
        return StellaError(f"{self._location}: {what} ({why}); copy or compress it again.")


def read_rows(location: Location, columns: Sequence[Column]) -> Iterator[tuple[int, RawRow | RowError]]:
    """Every row of a file that is not blank, with its number from 1: its values by column, or its error.

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
