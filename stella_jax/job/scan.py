"""The pass over all inputs before a job: every file to its end, every row checked, nothing embedded or written.

First the files are hashed and their records counted, which is quick and tells where in the job each input begins; then
each is read, a large one in pieces. Both happen to many at once where that pays. What comes of it is the same whoever
did what.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import numpy as np

from stella_jax.cpu_count import cpu_count
from stella_jax.errors import StellaError
from stella_jax.job.crew import Alone, Crew, Failed, Processes
from stella_jax.job.duplicates import Duplicates
from stella_jax.job.hashing import Tick
from stella_jax.job.rows import Fields, Rejected
from stella_jax.job.scanner import Counted, Piece, Read, join_digests
from stella_jax.job.source import Source

# Bytes of inputs for which it pays to start another process, which takes half a second; and of a piece.
BYTES_A_PROCESS = 32 * 2**20


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


def scan_sources(sources: Sequence[Source], fields: Fields, part_rows: int, folder: Path, tick: Tick) -> Scan:
    """Reads every input to its end.

    Args:
      folder: where the temporary files lie.

    Raises:
      StellaError: an input is damaged (of several, the first), or no row of any can be embedded.
    """
    duplicates = Duplicates(folder)
    try:
        with _crew(sources, fields, part_rows, duplicates, tick) as crew:
            counted, reads = _read_all(crew, sources, part_rows)
            crew.end()
        inputs = [Scanned(*c.identity, c.records, r.rows, r.faulty) for c, r in zip(counted, reads, strict=True)]
        first_fault = next((read.first_fault for read in reads if read.first_fault), None)
        if not sum(scanned.rows - scanned.faulty for scanned in inputs):
            raise StellaError(_nothing(first_fault))
        parts = _join([read.spans for read in reads], _starts(counted), part_rows)
        return Scan(tuple(inputs), parts, first_fault, duplicates.find(tick), duplicates)
    except BaseException:
        duplicates.close()
        raise


def _crew(sources: Sequence[Source], *work: *tuple[Fields, int, Duplicates, Tick]) -> Crew:
    count = _processes(sources)
    return Processes(count, *work) if count > 1 else Alone(*work)


def _processes(sources: Sequence[Source]) -> int:
    """How many to have: no more than there are cores and pieces, each with enough to do; memory:// is of this one."""
    most, size, pieces = cpu_count(), 0, 0
    if most < 2 or any(source.location.given.startswith("memory://") for source in sources):
        return 1
    for source in sources:
        if min(pieces, size // BYTES_A_PROCESS) >= most:
            break  # behind URLs, each size is a request
        own = source.location.size()
        size += own
        pieces += max(1, own // BYTES_A_PROCESS) if source.splits else 1
    return max(1, min(most, pieces, size // BYTES_A_PROCESS))


def _read_all(crew: Crew, sources: Sequence[Source], part_rows: int) -> tuple[list[Counted], list[Read]]:
    """What is in the inputs; raises for the first that is damaged."""
    counted = crew.map("count", [(source,) for source in sources])
    damaged = counted.pop() if counted and isinstance(counted[-1], Failed) else None
    starts = _starts(counted)
    pieces = [_pieces(count, start, part_rows) for count, start in zip(counted, starts, strict=False)]
    # What cannot be counted is read, too: only that tells after which row it is damaged, and whether one before it is.
    each = zip(sources, starts, [*pieces, [Piece()]] if damaged else pieces, strict=False)
    reads = crew.map("read", [(source, start, piece) for source, start, found in each for piece in found])
    for failed in (*reads[-1:], damaged):
        if isinstance(failed, Failed):
            raise failed.error
    answers = iter(reads)
    inputs = [_join_pieces(list(islice(answers, len(found)))) for found in pieces]
    for source, count, read in zip(sources, counted, inputs, strict=True):
        if read.records != count.records:
            raise StellaError(f"{source.location} changed while it was read; run the command again later.")
    return counted, inputs


def _pieces(counted: Counted, start: int, part_rows: int) -> list[Piece]:
    """An input in pieces to be read apart, cut where parts begin: at the first after every so many bytes."""
    records, sizes = np.array(counted.marks, np.int64).T
    marks = np.searchsorted(sizes, np.arange(BYTES_A_PROCESS, sizes[-1] + 1, BYTES_A_PROCESS))
    cuts = np.unique(-(-(start + records[marks]) // part_rows) * part_rows - start)
    firsts = [0, *cuts[(cuts > 0) & (cuts < counted.records)].tolist()]
    before = np.searchsorted(records, firsts, side="right") - 1
    ends = [*firsts[1:], sys.maxsize]  # the last is read to the end, wherever that is by now
    found = zip(firsts, ends, records[before].tolist(), sizes[before].tolist(), strict=True)
    return [Piece(*each) for each in found]


def _join_pieces(reads: Sequence[Read]) -> Read:
    """An input of its pieces."""
    records, rows, faulty = (sum(getattr(read, name) for read in reads) for name in ("records", "rows", "faulty"))
    first_fault = next((read.first_fault for read in reads if read.first_fault), None)
    return Read(records, rows, faulty, first_fault, np.concatenate([read.spans for read in reads]))


def _starts(counted: Sequence[Counted]) -> list[int]:
    """Positions of the inputs' first records, and of the end."""
    return list(accumulate((each.records for each in counted), initial=0))


def _join(tables: Sequence[np.ndarray], starts: Sequence[int], part_rows: int) -> np.ndarray:
    """The parts, from what lies of them in each input; both dtype PART.

    Args:
      starts: positions of the inputs' first records.
    """
    spans = np.concatenate(tables)
    numbers = np.concatenate([start // part_rows + np.arange(len(t)) for t, start in zip(tables, starts, strict=False)])
    firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
    parts = spans[firsts]
    parts["rows"] = np.add.reduceat(spans["rows"], firsts)
    for part, start, stop in zip(parts, firsts, [*firsts[1:], len(spans)], strict=True):
        part["digest"] = join_digests(span["digest"].tobytes() for span in spans[start:stop] if span["rows"])
    return parts


def _nothing(first_fault: Rejected | None) -> str:
    if first_fault is None:
        return "the inputs hold no rows."
    where = f"{first_fault.input}:{first_fault.number}"
    return f"no row of the inputs can be embedded; {where}, the first: {first_fault.reason}."
