"""The rows of parts, read one part at a time."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.plan import Span
from stella_jax.job.rows import Fields, Rejected, Row
from stella_jax.job.source import Source


class Reader:
    """Reads spans of inputs, which are given by number.

    Ascending spans read each input once; what lies between them is leapt over where the format can seek, and not parsed
    where it cannot.
    """

    def __init__(self, sources: Mapping[int, Source], fields: Fields):
        self._sources = sources
        self._fields = fields
        self._input = -1
        self._next = 0
        self._records: Iterator[Any] = iter(())

    def rows(self, span: Span, offset: int | None = None) -> Iterator[tuple[int, Row | Rejected]]:
        """The span's rows with their record numbers (from 0), blank ones left out.

        Args:
          offset: where the span begins in the unzipped input, if that is known.

        Raises:
          StellaError: the input has fewer records than it had.
        """
        self._seek(span, offset)
        source = self._sources[span.input]
        for record in islice(self._records, span.stop - span.start):
            self._next += 1
            row = source.row(self._next, record, self._fields)
            if row is not None:
                yield self._next - 1, row
        if self._next != span.stop:
            raise StellaError(f"{source.location} has become shorter since it was first read.")

    def _seek(self, span: Span, offset: int | None) -> None:
        if span.input == self._input and span.start == self._next:
            return
        source = self._sources[span.input]
        leaps = offset is not None and source.leaps
        if span.input != self._input or span.start < self._next or leaps:
            self._records = source.records(self._fields, span.start, offset)
        else:
            skipped = span.start - self._next
            next(islice(self._records, skipped, skipped), None)
        self._input, self._next = span.input, span.start
