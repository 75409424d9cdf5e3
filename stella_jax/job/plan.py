"""Which rows make which part: a pure function of the inputs' record counts and the settings."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Records start to stop (from 0, stop excluded) of the input of this number."""

    input: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Part:
    """The unit of commit, retry and resume: one output file.

    Attributes:
      number: from 0, in the job.
      start: the position of its first record, counting those of all inputs from 0.
    """

    number: int
    name: str
    start: int
    spans: tuple[Span, ...]

    @property
    def records(self) -> int:
        return sum(span.stop - span.start for span in self.spans)

    @property
    def file(self) -> str:
        return f"{self.name}.parquet"


def plan_parts(records: Sequence[int], part_rows: int) -> list[Part]:
    """Parts of `part_rows` records each, the last one shorter, over inputs of these record counts.

    Blank and rejected records count: only so does where a part begins not depend on what the records hold.
    """
    parts = _spans(records, part_rows)
    digits = max(5, len(str(len(parts) - 1)))  # names sort in the order of the parts
    return [Part(i, f"part-{i:0{digits}}", i * part_rows, spans) for i, spans in enumerate(parts)]


def _spans(records: Sequence[int], part_rows: int) -> list[tuple[Span, ...]]:
    """Every part's spans, in order."""
    parts: list[tuple[Span, ...]] = []
    open_spans: list[Span] = []
    room = part_rows
    for number, count in enumerate(records):
        start = 0
        while start < count:
            stop = min(count, start + room)
            open_spans.append(Span(number, start, stop))
            room -= stop - start
            start = stop
            if not room:
                parts.append(tuple(open_spans))
                open_spans, room = [], part_rows
    return [*parts, tuple(open_spans)] if open_spans else parts
