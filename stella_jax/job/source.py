"""An input of a job: a file, its format, and its rows as a stream."""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError, listed
from stella_jax.job.csv_rows import count_csv, csv_cells, read_csv
from stella_jax.job.hashing import Hashed, Hasher, Identity, Tick, identify
from stella_jax.job.lines import count_lines, json_cells, read_lines, text_cells
from stella_jax.job.location import Location, expand
from stella_jax.job.parquet_rows import count_parquet, parquet_cells, read_parquet
from stella_jax.job.rows import Cells, Fault, Fields, Marks, Rejected, Row, make_row


@dataclass(frozen=True, slots=True)
class Format:
    """How a kind of file is read, in two steps, so that rows of finished parts are skipped without parsing them.

    Attributes:
      records: (location, fields, start, offset) -> every record from number `start`, as it lies in the file, or a
        Fault, and the offset of the record after it, None where the format knows none.
      cells: (record, fields) -> what it holds, None for a blank one; raises Fault.
      count: (location, fields) -> how many records there are, found without making rows of them, and marks.
      seeks: whether it knows offsets.
      splits: whether it has other marks than the first.
    """

    records: Callable[[Location, Fields, int, Any], Iterator[tuple[Any, int | None]]]
    cells: Callable[[Any, Fields], Cells | None]
    count: Callable[[Location, Fields], tuple[int, Marks]]
    seeks: bool = False
    splits: bool = False


FORMATS = {
    ".jsonl": Format(read_lines, json_cells, count_lines, seeks=True, splits=True),
    ".txt": Format(read_lines, text_cells, count_lines, seeks=True, splits=True),
    ".csv": Format(read_csv, csv_cells, count_csv),
    ".parquet": Format(read_parquet, parquet_cells, count_parquet, splits=True),
}
GZIPPED = (".jsonl", ".txt", ".csv")


class Records:
    """An input's records one after the other, unparsed; `Source.row` makes rows of them.

    Attributes:
      offset: where the next record begins, in bytes of the unzipped file; None where the format knows no offsets, or
        this pass not yet.
    """

    def __init__(self, source: "Source", fields: Fields, start: int, offset: int | None):
        self.offset = (offset or None if start else 0) if source.format.seeks else None
        self._location = source.location
        self._done = start
        self._records = source.format.records(source.location, fields, start, self.offset)

    def __iter__(self) -> "Records":
        return self

    def __next__(self) -> Any:
        try:
            record, self.offset = next(self._records)
        except EOFError:
            where = f"is cut off after row {self._done}"
            raise StellaError(f"{self._location} {where}; its gzip stream has no end.") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            where = f"is damaged after row {self._done}" if self._done else "is no gzip file"
            raise StellaError(f"{self._location} {where}: {error}.") from None
        self._done += 1
        return record


@dataclass(frozen=True, slots=True)
class Source:
    """One input; `name` is what its rows, and the rows without an id, are known by."""

    name: str
    location: Location
    format: Format

    def records(self, fields: Fields, start: int = 0, offset: int | None = None) -> Records:
        """Records from number `start` (from 0).

        Args:
          offset: what `Records.offset` was before record `start` in an earlier pass; without it, or in a format that
            knows none, the records before are read and dropped.

        Raises:
          StellaError: (the records) the file as a whole is damaged; says after which row.
        """
        return Records(self, fields, start, offset)

    def identity(self) -> Identity:
        """Size and sha256 of the file."""
        return identify(self.location, lambda _: None)

    def count(self, fields: Fields, tick: Tick) -> tuple[Identity, int, Marks]:
        """The identity, the number of records, and the marks to which one can leap, in one pass.

        Raises:
          Exception: whatever a damaged file makes of it; only `records` says which row is the last sound one.
        """
        hasher = Hasher(tick)
        records, marks = self.format.count(Hashed(self.location.given, hasher), fields)
        return hasher.rest(self.location), records, marks if self.splits else marks[:1]

    @property
    def leaps(self) -> bool:
        """Whether an offset is reached without reading all that lies before it."""
        return self.format.seeks and not self._zipped

    @property
    def splits(self) -> bool:
        """Whether it has marks to leap to."""
        return self.format.splits and not self._zipped

    @property
    def _zipped(self) -> bool:
        return self.location.name.lower().endswith(".gz")

    def row(self, number: int, record: Any, fields: Fields) -> Row | Rejected | None:
        """The row of record `number` (from 1), why it is none, or None where the record is blank."""
        try:
            if isinstance(record, Fault):
                raise record
            cells = self.format.cells(record, fields)
        except Fault as fault:
            return Rejected(self.name, number, None, str(fault))
        return None if cells is None else make_row(self.name, number, cells, fields)


def open_sources(inputs: Sequence[str | Path], fields: Fields) -> list[Source]:
    """The files that the inputs name (see `expand`), in that order; nothing is read yet.

    Raises:
      StellaError: one of them is missing, no file, of an unknown kind, given twice, or cannot have the ids asked for.
    """
    locations = expand(inputs)
    formats = [format_of(location) for location in locations]
    for location, kind in zip(locations, formats, strict=True):
        if kind is FORMATS[".txt"] and fields.id is not None:
            raise StellaError(f"{location} is plain text, which has no field {fields.id!r}; leave out the id field.")
    return [Source(*both) for both in zip(_names(locations), locations, formats, strict=True)]


def format_of(location: Location) -> Format:
    """The format of a file, by its name."""
    name = location.name.lower()
    plain = name.removesuffix(".gz")
    suffix = plain[plain.rfind(".") :] if "." in plain else ""
    if suffix not in (FORMATS if plain == name else GZIPPED):
        known = [*FORMATS, *(f"{kind}.gz" for kind in GZIPPED)]
        raise StellaError(f"{location} is of no kind that is read; {listed(known)} are.")
    return FORMATS[suffix]


def _names(locations: Sequence[Location]) -> list[str]:
    """File names, with as many folders before them as tell two inputs apart; the same wherever the job is started."""
    for location in locations:
        if not _is_unicode(location.name):
            raise StellaError(f"{str(location)!r}: the name is not UTF-8; rename the file.")
    rivals: dict[str, list[tuple[str, ...]]] = {}
    for location in locations:
        rivals.setdefault(location.name, []).append(location.parts)
    return [_shortest_name(location.parts, rivals[location.name]) for location in locations]


def _is_unicode(name: str) -> bool:
    return name == name.encode(errors="replace").decode()


def _shortest_name(parts: tuple[str, ...], rivals: Sequence[tuple[str, ...]]) -> str:
    length = 1
    while sum(other[-length:] == parts[-length:] for other in rivals) > 1:
        length += 1
    return "/".join(parts[-length:])
