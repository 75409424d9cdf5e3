"""The input files of a job: listed, not read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.readers.columns import RowError
from stella_jax.readers.expand import expand
from stella_jax.readers.file_types import file_type
from stella_jax.readers.records import Format, RecordReader, format_of
from stella_jax.readers.rows import Rejected, Row, RowFields, make_row
from stella_jax.storage.location import Location


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file.

    Attributes:
      name: unique within the job; part of the ids of rows without an id.
      size: in bytes.
      version: changes when the file is written to: its modification time, or an object's etag.
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
        """Whether rows are numbered by byte offset, because a reader of a byte range does not know line numbers."""
        return self.is_cut and self.format.seeks

    def is_unchanged(self) -> bool:
        """Whether the file still exists with the same size and version."""
        try:
            return self.location.stat() == (self.size, self.version)
        except (OSError, StellaError):
            return False

    def position(self, number: int) -> str:
        """The position of a row, and its id if it has none: "a.jsonl:3", or "a.jsonl@1048576"."""
        return f"{self.name}{'@' if self.counts_bytes else ':'}{number}"

    def records(self, fields: RowFields, start: int = 0, offset: int | None = None) -> RecordReader:
        """Records from number `start` (from 0) on, see `RecordReader`."""
        return RecordReader(self.location, self.format, fields.columns, start, offset)

    def row(self, number: int, record: Any, fields: RowFields) -> Row | Rejected | None:
        """The row of a record, the reason why it is rejected, or None if it is blank."""
        raw = self.format.row(record, fields.columns)
        if isinstance(raw, RowError):
            return Rejected(self.name, number, None, str(raw))
        return None if raw is None else make_row(self.name, number, self.position(number), raw, fields)

    def rejected_fields(self, row: Rejected) -> dict[str, object]:
        """A line of rejected.jsonl."""
        where = "byte" if self.counts_bytes else "row"
        return {"input": self.name, where: row.number, "id": row.id, "reason": row.reason}


def open_inputs(paths: Sequence[str | Path], fields: RowFields) -> list[InputFile]:
    """The files that paths, URLs, directories and patterns name (see `expand.expand`), in that order.

    Raises:
      StellaError: a file is missing, not regular, of an unsupported type, given twice, or plain text although a second
        column is needed.
    """
    locations = expand(paths)
    names = _names(locations)
    return [
        InputFile(name, location, format_of(location, fields.columns), *(location.listed or location.stat()))
        for name, location in zip(names, locations, strict=True)
    ]


def _names(locations: Sequence[Location]) -> list[str]:
    """Unique names: the file name, with as many folders as needed; they do not depend on the working directory."""
    for location in locations:
        if location.name != location.name.encode(errors="replace").decode():
            raise StellaError(f"{str(location)!r}: the file name is not UTF-8; rename the file.")
    names = [location.name for location in locations]
    length, duplicates = 1, _duplicates(names, range(len(names)))
    while duplicates:
        length += 1
        for i in duplicates:
            names[i] = "/".join(locations[i].parts[-length:])
        duplicates = _duplicates(names, duplicates)
    return names


def _duplicates(names: Sequence[str], among: Sequence[int]) -> list[int]:
    counts = Counter(names[i] for i in among)
    return [i for i in among if counts[names[i]] > 1]
