"""Chunks of the parts of splits that are not committed: read, then tokenized."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from stella_jax.errors import StellaError
from stella_jax.job import damaged
from stella_jax.job.commits import Committed, PartName, SplitCommits
from stella_jax.job.job import Job
from stella_jax.pretrained import PretrainedModel
from stella_jax.readers.rows import Row
from stella_jax.readers.split_reader import InputError, Position, PositionedRow, RowsDigest, read_split
from stella_jax.readers.splits import Split
from stella_jax.tokenizer.tokenizer import Tokens

# Rows of a chunk. The device starts on the first chunk of a part, not on a whole one, and the tokenizer's own objects
# take many times the memory of the token ids.
CHUNK_ROWS = 256


class PartEnd(NamedTuple):
    """The end of a part, known once its last row is read.

    Attributes:
      digest: of the part's rows.
      is_last: whether the part ends its split.
      after: position of the next row.
      read: bytes of the split up to there, as far as known.
    """

    split: Split
    digest: str
    is_last: bool
    after: Position
    read: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of a part.

    Attributes:
      rows: once tokenized, without their texts.
      is_first: whether it is the first chunk of its part.
      end: of the part, in its last chunk.
      tokens: of the rows that can be embedded, once tokenized.
    """

    name: PartName
    rows: list[PositionedRow]
    is_first: bool
    end: PartEnd | None
    tokens: list[Tokens] = field(default_factory=list)

    def tokenized(self, model: PretrainedModel, prompt: str) -> "Chunk":
        texts = [row.row.text for row in self.rows if isinstance(row.row, Row)]
        rows = [row._replace(row=row.row._replace(text="")) if isinstance(row.row, Row) else row for row in self.rows]
        tokens = model.tokenize(texts, prompt)
        packed = [Tokens(array("i", text.ids), text.truncated) for text in tokens]  # a tenth of a list's memory
        return replace(self, rows=rows, tokens=packed)


class ChunkReader:
    """Reads parts that are not committed.

    Attributes:
      error: of the damaged input that ended the reading, if any.
    """

    def __init__(self, job: Job):
        self._job = job
        self.error: StellaError | None = None

    def read(self, splits: Iterable[tuple[Split, SplitCommits]]) -> Iterator[Chunk]:
        """The chunks of one missing part after the other, up to the end or to a damaged input.

        Raises:
          StellaError: a repaired input differs from its committed rows.
        """
        for split, done in splits:
            yield from self._missing_parts(split, done)
            if self.error:
                return

    def _missing_parts(self, split: Split, done: SplitCommits) -> Iterator[Chunk]:
        if self._job.was_repaired(split):
            rows = _RowBuffer(self._job, split, Position())
            yield from self._parts(split, rows, self._skip_committed_rows(split, rows), set())
            return
        committed, number = set(done.numbers), 0
        while done.last is None or number <= done.last:
            if number in committed:
                number += 1
                continue
            number, start = self._resume(split, committed, number)
            for chunk in self._parts(split, _RowBuffer(self._job, split, start), number, committed):
                yield chunk
                number = chunk.name.number + 1
                if chunk.end and chunk.end.is_last:
                    return
            if self.error:
                return

    def _resume(self, split: Split, numbers: set[int], number: int) -> tuple[int, Position]:
        """Where part `number` starts: after the part before it, which is redone, too, if its commit is damaged."""
        committed = Committed(self._job.store)
        while number:
            before = PartName(split.number, number - 1)
            commit = committed.read_one(self._job.store, before)
            if commit and commit.key == self._job.key(split):
                return number, commit.after
            committed.invalidate(self._job.store, [before] if before in committed.files else [])
            number -= 1
            numbers.discard(number)
        return 0, Position()

    def _parts(self, split: Split, rows: "_RowBuffer", number: int, committed: set[int]) -> Iterator[Chunk]:
        """The chunks of parts from `number` on, up to the next committed part."""
        while number not in committed:
            yield from self._part(split, PartName(split.number, number), rows)
            if rows.error:
                self.error = rows.error
                damaged.mark(self._job.store, rows.error.input, str(rows.error))
            if rows.is_at_end or rows.error:
                return
            number += 1

    def _part(self, split: Split, name: PartName, rows: "_RowBuffer") -> Iterator[Chunk]:
        """The chunks of a part; none if an input is damaged before its first row."""
        left, digest, after, end, is_first = self._job.fingerprint["part_rows"], RowsDigest(), rows.start, None, True
        while end is None:
            taken = rows.take(min(left, CHUNK_ROWS))
            left -= len(taken)
            if is_first and rows.error and not taken:
                return
            for row in taken:
                digest.add(row.row)
            after = taken[-1].after if taken else after
            if not left or rows.is_at_end or rows.error:
                is_last = rows.is_at_end and not rows.error
                read = split.size if is_last else _bytes_before(self._job, split, after)
                end = PartEnd(split, digest.hexdigest(), is_last, after, read)
            yield Chunk(name, taken, is_first, end)
            is_first = False

    def _skip_committed_rows(self, split: Split, rows: "_RowBuffer") -> int:
        """Reads the committed rows of a repaired input again; returns the number of the next part.

        Raises:
          StellaError: the rows are different.
        """
        committed = Committed(self._job.store)
        names = [name for name in committed.names() if name.split == split.number]
        for commit in committed.read(self._job.store, names):
            digest = RowsDigest()
            for row in rows.take(commit.rows + len(commit.rejected) if commit else 0):
                digest.add(row.row)
            if commit is None or digest.hexdigest() != commit.digest:
                name = self._job.inputs[rows.input].location
                raise StellaError(f"{name}: repaired, but its rows before the damage have changed; use another --out.")
        return len(names)


class _RowBuffer:
    """The rows of a split from a position on.

    Attributes:
      error: that ended the reading early, if any.
      input: number of the file that was read last.
    """

    def __init__(self, job: Job, split: Split, start: Position):
        self.start = start
        self.error: InputError | None = None
        self.input = split.byte_ranges[min(start.byte_range, len(split.byte_ranges) - 1)].input
        self._rows = read_split(job.inputs, split, job.row_fields, start)
        self._next = self._read()

    @property
    def is_at_end(self) -> bool:
        return self._next is None

    def take(self, count: int) -> list[PositionedRow]:
        taken = []
        while self._next is not None and len(taken) < count:
            taken.append(self._next)
            self.input = self._next.input
            self._next = self._read()
        return taken

    def _read(self) -> PositionedRow | None:
        try:
            return next(self._rows, None)
        except InputError as error:
            self.error = error
            return None


def _bytes_before(job: Job, split: Split, after: Position) -> int:
    """Bytes of a split before a position, as far as known."""
    byte_range = split.byte_ranges[after.byte_range]
    before = sum(each.stop - each.start for each in split.byte_ranges[: after.byte_range])
    inside = after.offset - byte_range.start if job.inputs[byte_range.input].counts_bytes else 0
    return before + max(0, inside)
