"""The rows of parts, read one part at a time."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.plan import Part, Span
from stella_jax.job.rows import Fields, Rejected, Row
from stella_jax.job.scan import Scan
from stella_jax.job.source import Source


class Reader:
    """Reads spans of inputs, which are given by number.

    Ascending spans read each input once, and what lies between them is not parsed.
    """

    def __init__(self, sources: Mapping[int, Source], fields: Fields):
        self._sources = sources
        self._fields = fields
        self._input = -1
        self._next = 0
        self._records: Iterator[Any] = iter(())

    def rows(self, span: Span) -> Iterator[tuple[int, Row | Rejected]]:
        """The span's rows with their record numbers (from 0), blank ones left out.

        Raises:
          StellaError: the input has fewer records than it had.
        """
        self._seek(span)
        source = self._sources[span.input]
        for record in islice(self._records, span.stop - span.start):
            self._next += 1
            row = source.row(self._next, record, self._fields)
            if row is not None:
                yield self._next - 1, row
        if self._next != span.stop:
            raise StellaError(f"{source.location} has become shorter since it was first read.")

    def _seek(self, span: Span) -> None:
        if span.input != self._input or span.start < self._next:
            self._records = self._sources[span.input].records(self._fields, span.start)
        else:
            skipped = span.start - self._next
            next(islice(self._records, skipped, skipped), None)
        self._input, self._next = span.input, span.start


def read_part(reader: Reader, scan: Scan, part: Part) -> list[Row | Rejected]:
    """A part's rows in order, those among them rejected whose id came before."""
    items: list[Row | Rejected] = []
    for span in part.spans:
        offset = scan.offsets[span.input]
        firsts = scan.duplicates.firsts(offset + span.start, offset + span.stop)
        for number, row in reader.rows(span):
            first = int(firsts[number - span.start])
            if isinstance(row, Row) and first >= 0:
                row = Rejected(row.input, row.number, row.id, f"duplicate id, first seen at {scan.where(first)}")
            items.append(row)
    return items
