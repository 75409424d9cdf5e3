"""One pass over all inputs before a job: every file to its end, every row checked, nothing embedded or written."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stella_jax.errors import StellaError
from stella_jax.job.duplicates import Duplicates
from stella_jax.job.progress import Tick
from stella_jax.job.rows import Fields, Rejected, Row
from stella_jax.job.source import Source

# What is known of a part before it is embedded: where its first record begins in its input (bytes, unzipped; -1 where
# the format cannot seek), its rows (blank records left out), and a hash of them.
PART = np.dtype([("offset", "<i8"), ("rows", "<i8"), ("digest", "V16")])


@dataclass(frozen=True, slots=True)
class Scanned:
    """An input as the scan found it; `records` counts blank ones too, `rows` does not, `faulty` are no sound rows."""

    size: int
    sha256: str
    records: int
    rows: int
    faulty: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What the inputs hold.

    Attributes:
      inputs: in the job's order.
      parts: one entry of dtype PART a part.
      first_fault: of the rows that cannot be embedded, None where all can.
      repeated: rows whose id came before.
      duplicates: which they are.
    """

    inputs: tuple[Scanned, ...]
    parts: np.ndarray
    first_fault: Rejected | None
    repeated: int
    duplicates: Duplicates

    def __enter__(self) -> "Scan":
        return self

    def __exit__(self, *raised: object) -> None:
        self.duplicates.close()


class RowsDigest:
    """A hash over rows, by which a process that reads them knows that they are those of the plan."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.rows = 0

    def add(self, row: Row | Rejected) -> None:
        text = row.text if isinstance(row, Row) else "\1"
        self._hash.update(f"{row.number}\0{row.id}\0{text}\0".encode())
        self.rows += 1

    def digest(self) -> bytes:
        return self._hash.digest()


def scan_sources(sources: Sequence[Source], fields: Fields, part_rows: int, folder: Path, tick: Tick) -> Scan:
    """Reads every input to its end.

    Args:
      folder: where the temporary files lie.
      tick: called after every row.

    Raises:
      StellaError: an input is damaged, or no row of any can be embedded.
    """
    duplicates = Duplicates(folder)
    try:
        scanner = _Scanner(fields, part_rows, duplicates, tick)
        inputs = tuple(scanner.scan(source) for source in sources)
        if not sum(scanned.rows - scanned.faulty for scanned in inputs):
            raise StellaError(_nothing(scanner.first_fault))
        return Scan(inputs, scanner.parts(), scanner.first_fault, duplicates.find(), duplicates)
    except BaseException:
        duplicates.close()
        raise


class _Scanner:
    """Reads one input after the other, and keeps the part that is open between them."""

    def __init__(self, fields: Fields, part_rows: int, duplicates: Duplicates, tick: Tick):
        self._fields = fields
        self._part_rows = part_rows
        self._duplicates = duplicates
        self._tick = tick
        self._entries: list[tuple[int, int, bytes]] = []
        self._position = 0
        self._begin(None)
        self.first_fault: Rejected | None = None

    def scan(self, source: Source) -> Scanned:
        number = rows = faulty = 0
        records = source.records(self._fields)
        if not self._taken:
            self._begin(records.offset)
        for number, record in enumerate(records, 1):
            row = source.row(number, record, self._fields)
            if row is not None:
                self._add(row)
                rows += 1
                faulty += isinstance(row, Rejected)
            self._position += 1
            self._taken += 1
            if self._taken == self._part_rows:
                self._end()
                self._begin(records.offset)
            self._tick()
        return Scanned(*source.identity(), records=number, rows=rows, faulty=faulty)

    def parts(self) -> np.ndarray:
        """The entries of all parts, the open one among them."""
        if self._taken:
            self._end()
        return np.array(self._entries, PART)

    def _add(self, row: Row | Rejected) -> None:
        self._digest.add(row)
        if isinstance(row, Row):
            self._duplicates.add(row.id, self._position)
        else:
            self.first_fault = self.first_fault or row

    def _begin(self, offset: int | None) -> None:
        self._offset = -1 if offset is None else offset
        self._taken = 0
        self._digest = RowsDigest()

    def _end(self) -> None:
        self._entries.append((self._offset, self._digest.rows, self._digest.digest()))
        self._taken = 0


def _nothing(first_fault: Rejected | None) -> str:
    if first_fault is None:
        return "the inputs hold no rows."
    where = f"{first_fault.input}:{first_fault.number}"
    return f"no row of the inputs can be embedded; {where}, the first: {first_fault.reason}."
