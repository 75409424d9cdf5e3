"""What one process does of a scan: inputs counted, then read to their ends with every row checked.

Nothing here may import JAX: it belongs to the process that embeds.
"""

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, NamedTuple

import numpy as np

from stella_jax.job.duplicates import Runs
from stella_jax.job.hashing import Identity, Tick
from stella_jax.job.records import RecordReader
from stella_jax.job.rows import Fields, Marks, Rejected, Row
from stella_jax.job.source import Source

# What is known of a part, or of what lies of it in one input, before it is embedded: where its first record begins in
# its input (bytes, unzipped; -1 where the format cannot seek), its rows (blank records left out), and a hash of them.
PART = np.dtype([("offset", "<i8"), ("rows", "<i8"), ("digest", "V16")])

TICK_ROWS = 256


@dataclass(frozen=True, slots=True)
class Counted:
    """An input after the first look at it; `records` counts blank ones too."""

    identity: Identity
    records: int
    marks: Marks


class Piece(NamedTuple):
    """Records `first` to `stop` of an input, found from record `mark`, which begins at this offset."""

    first: int = 0
    stop: int = sys.maxsize
    mark: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """An input, or a piece of it, after it was read.

    Attributes:
      records: blank ones too, which are no rows.
      faulty: rows that are not sound, the first of them `first_fault`.
      spans: dtype PART, an entry for every part that has records in this input.
    """

    records: int
    rows: int
    faulty: int
    first_fault: Rejected | None
    spans: np.ndarray


class Scanner:
    """Reads inputs for a scan.

    Args:
      file: where the ids go, as Runs.
      tick: called every few rows and megabytes.
    """

    def __init__(self, fields: Fields, part_rows: int, file: BinaryIO, tick: Tick):
        self._fields = fields
        self._part_rows = part_rows
        self._runs = Runs(file)
        self._tick = tick

    def count(self, source: Source) -> Counted:
        return Counted(*source.count(self._fields, self._tick))

    def read(self, source: Source, start: int, piece: Piece) -> Read:
        """Reads a piece of an input, whose first record has this position; raises StellaError where it is damaged."""
        records = source.records(self._fields, piece.mark, piece.offset)
        before = piece.first - piece.mark
        next(islice(records, before, before), None)
        reading = _Reading(source, records, self._fields, self._runs, start, piece.first)
        spans = []
        while not reading.ended and reading.done < piece.stop:
            spans.append(reading.span(self._part_rows - (start + reading.done) % self._part_rows, self._tick))
        table = np.array([span for span in spans if span is not None], PART)
        return Read(reading.done - piece.first, int(table["rows"].sum()), reading.faulty, reading.first_fault, table)

    def end(self) -> list[np.ndarray]:
        """Ends the runs of ids; returns their bounds."""
        return self._runs.end()


class _Reading:
    """One pass over one input, `done` records of which were read or passed over."""

    def __init__(self, source: Source, records: RecordReader, fields: Fields, runs: Runs, start: int, done: int):
        self.done = done
        self.faulty = 0
        self.ended = False
        self.first_fault: Rejected | None = None
        self._source = source
        self._records = records
        self._fields = fields
        self._runs = runs
        self._start = start

    def span(self, count: int, tick: Tick) -> tuple[int, int, bytes] | None:
        """Reads so many records, or as many as there are: their entry of dtype PART, None for no records."""
        offset, first, digest = self._records.offset, self.done, SpanDigest()
        while count and not self.ended:
            before, wanted = self.done, min(count, TICK_ROWS)
            self._some(wanted, digest)
            count -= self.done - before
            self.ended = self.done - before < wanted
            tick(self.done - before)
        return None if self.done == first else (-1 if offset is None else offset, digest.rows, digest.digest())

    def _some(self, count: int, digest: "SpanDigest") -> None:
        first = self.done + 1
        for number, record in enumerate(islice(self._records, count), first):
            row = self._source.row(number, record, self._fields)
            if row is not None:
                self._add(row, digest)
            self.done = number

    def _add(self, row: Row | Rejected, digest: "SpanDigest") -> None:
        digest.add(row)
        if isinstance(row, Row):
            self._runs.add(row.id, self._start + row.number - 1)
        else:
            self.faulty += 1
            self.first_fault = self.first_fault or row


class SpanDigest:
    """A hash over rows of one input."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.rows = 0

    def add(self, row: Row | Rejected) -> None:
        text = row.text if isinstance(row, Row) else "\1"
        self._hash.update(f"{row.number}\0{row.id}\0{text}\0".encode())
        self.rows += 1

    def digest(self) -> bytes:
        return self._hash.digest()


class RowsDigest:
    """A hash over the rows of a part, by which a process that reads them knows that they are those of the plan.

    It is one of hashes over the rows of each input, so that inputs can be read apart.
    """

    def __init__(self) -> None:
        self._input: str | None = None
        self._spans: list[SpanDigest] = []

    def add(self, row: Row | Rejected) -> None:
        if row.input != self._input:
            self._input = row.input
            self._spans.append(SpanDigest())
        self._spans[-1].add(row)

    def digest(self) -> bytes:
        return join_digests(span.digest() for span in self._spans)


def join_digests(spans: Iterable[bytes]) -> bytes:
    """The digest of a part from those of its rows in each input, without those where it has none."""
    return hashlib.blake2b(b"".join(spans), digest_size=16).digest()
