"""The records of a file of any supported type, one after the other, parsed only where that is asked for."""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.columns import Column, RawRow, RowError
from stella_jax.job.csv_rows import count_csv, csv_row, read_csv
from stella_jax.job.file_types import SUPPORTED, file_type
from stella_jax.job.files import BadZstdFile
from stella_jax.job.lines import count_lines, json_row, read_lines, text_row
from stella_jax.job.location import Location
from stella_jax.job.parquet_rows import count_parquet, parquet_row, read_parquet
from stella_jax.job.rows import Marks


@dataclass(frozen=True, slots=True)
class Format:
    """How a type of file is read, in two steps, so that rows of finished parts are skipped without parsing them.

    Attributes:
      records: (location, columns, start, offset) -> every record from number `start`, as it lies in the file, or a
        RowError, and the offset of the record after it, None where the format knows none.
      parse: (record, columns) -> its values by column, None for a blank one; raises RowError.
      count: (location, columns) -> how many records there are, found without making rows of them, and marks.
      seeks: whether it knows offsets.
      splits: whether it has other marks than the first.
    """

    records: Callable[[Location, Sequence[Column], int, Any], Iterator[tuple[Any, int | None]]]
    parse: Callable[[Any, Sequence[Column]], RawRow | None]
    count: Callable[[Location, Sequence[Column]], tuple[int, Marks]]
    seeks: bool = False
    splits: bool = False

    def row(self, record: Any, columns: Sequence[Column]) -> RawRow | RowError | None:
        """The values of a record by column, what is wrong with it, or None where it is blank."""
        if isinstance(record, RowError):
            return record
        try:
            return self.parse(record, columns)
        except RowError as error:
            return error


FORMATS = {
    ".jsonl": Format(read_lines, json_row, count_lines, seeks=True, splits=True),
    ".txt": Format(read_lines, text_row, count_lines, seeks=True, splits=True),
    ".csv": Format(read_csv, csv_row, count_csv),
    ".parquet": Format(read_parquet, parquet_row, count_parquet, splits=True),
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
        self._done = start
        self._records = format.records(location, columns, start, self.offset)

    @property
    def _compression(self) -> str | None:
        found = file_type(self._location.name)
        return found and found.compression

    def __iter__(self) -> "RecordReader":
        return self

    def __next__(self) -> Any:
        try:
            record, self.offset = next(self._records)
        except EOFError:
            where = f"is cut off after row {self._done}"
            raise StellaError(f"{self._location} {where}; its {self._compression} stream has no end.") from None
        except (gzip.BadGzipFile, zlib.error, BadZstdFile) as error:
            where = f"is damaged after row {self._done}" if self._done else f"is not a valid {self._compression} file"
            raise StellaError(f"{self._location} {where}: {error}.") from None
        self._done += 1
        return record


def read_rows(location: Location, columns: Sequence[Column]) -> Iterator[tuple[int, RawRow | RowError]]:
    """Every row of a file that is not blank, with its number from 1: its values by column, or what is wrong with it.

    Raises:
      StellaError: the file's type is not supported, it is damaged, or the header of a .csv or the schema of a .parquet
        file lacks a needed column.
    """
    format = format_of(location, columns)
    for number, record in enumerate(RecordReader(location, format, columns), 1):
        row = format.row(record, columns)
        if row is not None:
            yield number, row
