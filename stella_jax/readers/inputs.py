"""The input files of a job: listed, not read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.readers.columns import RowError
from stella_jax.readers.file_types import file_type
from stella_jax.readers.records import Format, RecordReader, format_of
from stella_jax.readers.rows import Fields, Rejected, Row, make_row
from stella_jax.storage.location import Location, expand


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file.

    Attributes:
      name: what its rows, and ids made of their positions, are known by.
      size: in bytes.
      version: differs once the file was written to: its time of modification, or an object's etag.
      is_cut: whether it is read in byte ranges, because it is larger than a split.
    """

    name: str
    location: Location
    format: Format
    size: int
    version: str
    is_cut: bool = False

    @property
    def can_be_cut(self) -> bool:
        found = file_type(self.location.name)
        return self.format.splits and found is not None and found.compression is None

    @property
    def counts_bytes(self) -> bool:
        """Whether rows are numbered by their byte offset: a reader of a byte range does not know their line number."""
        return self.is_cut and self.format.seeks

    def is_unchanged(self) -> bool:
        """Whether the file is there, and as it was when it was listed."""
        try:
            return self.location.stat() == (self.size, self.version)
        except (OSError, StellaError):
            return False

    def position(self, number: int) -> str:
        """Where a row is, for people, and the id of a row without one: "a.jsonl:3", or "a.jsonl@1048576"."""
        return f"{self.name}{'@' if self.counts_bytes else ':'}{number}"

    def records(self, fields: Fields, start: int = 0, offset: int | None = None) -> RecordReader:
        """Records from number `start` (from 0), see `RecordReader`."""
        return RecordReader(self.location, self.format, fields.columns, start, offset)

    def row(self, number: int, record: Any, fields: Fields) -> Row | Rejected | None:
        """The row of a record, why it cannot be used, or None where it is blank."""
        raw = self.format.row(record, fields.columns)
        if isinstance(raw, RowError):
            return Rejected(self.name, number, None, str(raw))
        return None if raw is None else make_row(self.name, number, self.position(number), raw, fields)

    def rejected_fields(self, row: Rejected) -> dict[str, object]:
        """A line of rejected.jsonl."""
        where = "byte" if self.counts_bytes else "row"
        return {"input": self.name, where: row.number, "id": row.id, "reason": row.reason}


def open_inputs(paths: Sequence[str | Path], fields: Fields) -> list[InputFile]:
    """The files that paths, URLs, directories and patterns name (see `location.expand`), in that order.

    Raises:
      StellaError: a file is missing, not a regular file, of an unsupported type, given twice, or plain text although a
        second column is needed.
    """
    locations = expand(paths)
    names = _names(locations)
    return [
        InputFile(name, location, format_of(location, fields.columns), *(location.listed or location.stat()))
        for name, location in zip(names, locations, strict=True)
    ]


def _names(locations: Sequence[Location]) -> list[str]:
    """File names, with as many folders before them as tell two inputs apart; the same wherever the job is started."""
    for location in locations:
        if location.name != location.name.encode(errors="replace").decode():
            raise StellaError(f"{str(location)!r}: the name is not UTF-8; rename the file.")
    names = [location.name for location in locations]
    length, rivals = 1, _rivals(names, range(len(names)))
    while rivals:
        length += 1
        for i in rivals:
            names[i] = "/".join(locations[i].parts[-length:])
        rivals = _rivals(names, rivals)
    return names


def _rivals(names: Sequence[str], among: Sequence[int]) -> list[int]:
    counts = Counter(names[i] for i in among)
    return [i for i in among if counts[names[i]] > 1]
