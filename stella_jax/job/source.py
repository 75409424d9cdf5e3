"""An input of a job: a file, its format, and its rows as a stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.columns import RowError
from stella_jax.job.file_types import file_type
from stella_jax.job.hashing import Hashed, Hasher, Identity, Tick, identify
from stella_jax.job.location import Location, expand
from stella_jax.job.records import Format, RecordReader, format_of
from stella_jax.job.rows import Fields, Marks, Rejected, Row, make_row


@dataclass(frozen=True, slots=True)
class Source:
    """One input; `name` is what its rows, and the rows without an id, are known by."""

    name: str
    location: Location
    format: Format

    def records(self, fields: Fields, start: int = 0, offset: int | None = None) -> RecordReader:
        """Records from number `start` (from 0), see `RecordReader`."""
        return RecordReader(self.location, self.format, fields.columns, start, offset)

    def identity(self) -> Identity:
        """Size and sha256 of the file."""
        return identify(self.location, lambda _: None)

    def count(self, fields: Fields, tick: Tick) -> tuple[Identity, int, Marks]:
        """The identity, the number of records, and the marks to which one can leap, in one pass.

        Raises:
          Exception: whatever a damaged file makes of it; only `records` says which row is the last sound one.
        """
        hasher = Hasher(tick)
        records, marks = self.format.count(Hashed(self.location.given, hasher), fields.columns)
        return hasher.rest(self.location), records, marks if self.splits else marks[:1]

    @property
    def leaps(self) -> bool:
        """Whether an offset is reached without reading all that lies before it."""
        return self.format.seeks and not self._compressed

    @property
    def splits(self) -> bool:
        """Whether it has marks to leap to."""
        return self.format.splits and not self._compressed

    @property
    def _compressed(self) -> bool:
        found = file_type(self.location.name)
        return found is not None and found.compression is not None

    def row(self, number: int, record: Any, fields: Fields) -> Row | Rejected | None:
        """The row of record `number` (from 1), why it is none, or None where the record is blank."""
        raw = self.format.row(record, fields.columns)
        if isinstance(raw, RowError):
            return Rejected(self.name, number, None, str(raw))
        return None if raw is None else make_row(self.name, number, raw, fields.columns)


def open_sources(inputs: Sequence[str | Path], fields: Fields) -> list[Source]:
    """The files that the inputs name (see `expand`), in that order; nothing is read yet.

    Raises:
      StellaError: one of them is missing, no file, of an unknown kind, given twice, or cannot have the ids asked for.
    """
    locations = expand(inputs)
    formats = [format_of(location, fields.columns) for location in locations]
    return [Source(*both) for both in zip(_names(locations), locations, formats, strict=True)]


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
