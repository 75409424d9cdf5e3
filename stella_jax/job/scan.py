"""One pass over all inputs before a job: every file to its end, every row checked, nothing embedded or written."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from tqdm import tqdm

from stella_jax.errors import StellaError
from stella_jax.job.duplicates import Duplicates
from stella_jax.job.rows import Fields, Rejected, Row
from stella_jax.job.source import Source


@dataclass(frozen=True, slots=True)
class Scanned:
    """An input as the scan found it; `records` counts blank ones too, `rows` does not."""

    source: Source
    size: int
    sha256: str
    records: int
    rows: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What the inputs hold.

    Attributes:
      inputs: in the job's order.
      offsets: position of each input's first record, and the end; positions count the records of all inputs, from 0.
      duplicates: answers for positions.
    """

    inputs: tuple[Scanned, ...]
    offsets: tuple[int, ...]
    duplicates: Duplicates

    def __enter__(self) -> "Scan":
        return self

    def __exit__(self, *raised: object) -> None:
        self.duplicates.close()

    @property
    def rows(self) -> int:
        """Rows of all inputs, sound or not."""
        return sum(scanned.rows for scanned in self.inputs)

    def where(self, position: int) -> str:
        """Input and row number of a position, in words."""
        i = bisect_right(self.offsets, position) - 1
        return f"{self.inputs[i].source.name}:{position - self.offsets[i] + 1}"


def scan_sources(sources: Sequence[Source], fields: Fields, folder: Path, progress: bool = False) -> Scan:
    """Reads every input to its end; `folder` is where its temporary files lie.

    Raises:
      StellaError: an input is damaged, or no row of any can be embedded.
    """
    duplicates = Duplicates(folder)
    try:
        with tqdm(desc="reading", unit=" rows", disable=not progress, leave=False) as bar:
            scan = _scan(sources, fields, duplicates, bar)
        duplicates.find()
    except BaseException:
        duplicates.close()
        raise
    return scan


def _scan(sources: Sequence[Source], fields: Fields, duplicates: Duplicates, bar: tqdm) -> Scan:
    inputs: list[Scanned] = []
    position, sound, first_fault = 0, 0, None
    for source in sources:
        number, rows = 0, 0
        for number, record in enumerate(source.records(fields), 1):
            row = source.row(number, record, fields)
            if isinstance(row, Row):
                duplicates.add(row.id, position + number - 1)
                sound += 1
            elif isinstance(row, Rejected):
                first_fault = first_fault or row
            rows += row is not None
            bar.update()
        inputs.append(Scanned(source, *source.identity(), records=number, rows=rows))
        position += number
    if not sound:
        raise StellaError(_nothing(first_fault))
    offsets = accumulate((scanned.records for scanned in inputs), initial=0)
    return Scan(tuple(inputs), tuple(offsets), duplicates)


def _nothing(first_fault: Rejected | None) -> str:
    if first_fault is None:
        return "the inputs hold no rows."
    where = f"{first_fault.input}:{first_fault.number}"
    return f"no row of the inputs can be embedded; {where}, the first: {first_fault.reason}."
