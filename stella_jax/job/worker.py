"""Embeds splits on this process's devices: rows are read and tokenized ahead of them, parts written behind."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import sqrt
from typing import NamedTuple

import numpy as np

from stella_jax.batching import Batch
from stella_jax.errors import StellaError
from stella_jax.graceful_shutdown import GracefulShutdown
from stella_jax.job import damaged
from stella_jax.job.commits import Commit, Committed, PartName, SplitCommits, write_commit
from stella_jax.job.computed import column_names, finished
from stella_jax.job.job import JOB, Job, read_fields
from stella_jax.job.kept import kept_columns
from stella_jax.job.part_ids import write_ids
from stella_jax.job.pipeline import BackgroundWriter, prefetch
from stella_jax.job.progress import Progress
from stella_jax.job.write import part_table, write_part
from stella_jax.pretrained import PretrainedModel
from stella_jax.quantization import finite_rows, quantize
from stella_jax.readers.rows import Rejected, Row
from stella_jax.readers.split_reader import Position, PositionedRow, RowsDigest, read_split
from stella_jax.readers.splits import Split
from stella_jax.tokenizer import Tokens

# A part is read and tokenized in chunks of so many rows: the device begins with the first, and what the tokenizer
# builds around the ids of a text is many times their size.
CHUNK_ROWS = 256

# Chunks read while one is tokenized, and tokenized while one is on the device; parts that wait to be written.
READ_AHEAD = 2
WRITTEN_BEHIND = 1

# Rows whose parts may be open at once, so that batches are full although parts are small.
OPEN_ROWS = {"cpu": 512}
DEFAULT_OPEN_ROWS = 65_536

NOT_FINITE = "its embedding or score is not finite"


class PartEnd(NamedTuple):
    """What is known of a part when its last row is read; `read` is the bytes of the split before it, where known."""

    split: Split
    digest: str
    is_last: bool
    after: Position
    read: int


class ReadRows(NamedTuple):
    """Some rows of a part as they were read; the last ones have the part's `end`."""

    name: PartName
    rows: list[PositionedRow]
    is_first: bool
    end: PartEnd | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a part before the device.

    Attributes:
      rows: in order, their texts dropped.
      tokens: of those that can be embedded.
      is_first: of its part; the last chunk has the part's `end`.
    """

    name: PartName
    rows: list[PositionedRow]
    tokens: list[Tokens]
    is_first: bool
    end: PartEnd | None


@dataclass(slots=True)
class OpenPart:
    """The chunks of a part that have come, in order, and their embeddings, as far as they are there."""

    chunks: list[Chunk] = field(default_factory=list)
    embeddings: dict[int, Sequence[np.ndarray]] = field(default_factory=dict)

    @property
    def is_embedded(self) -> bool:
        return self.chunks[-1].end is not None and len(self.embeddings) == len(self.chunks)


class Worker:
    """Embeds and commits splits; doing one twice, here or elsewhere, gives the same bytes.

    Args:
      max_rejected: share of the rows that may be rejected.
    """

    def __init__(self, model: PretrainedModel, job: Job, max_rejected: float):
        self._model = model
        self._job = job
        self._max_rejected = max_rejected
        self._rows = self._rejected = 0

    def run(
        self,
        splits: Iterable[tuple[Split, SplitCommits]],
        progress: Progress,
        stop: GracefulShutdown,
        on_finished: Callable[[Split], object] = lambda _: None,
    ) -> None:
        """Embeds and commits what is missing of these splits.

        Args:
          on_finished: called with each split whose last part was committed.

        Raises:
          StellaError: an input is damaged (what came before is committed), too many rows are rejected, or the directory
            holds another job by now.
          Stopped: it was asked to stop; the parts that were finished in time are committed.
        """

        def on_batch(batch: Batch) -> None:
            progress.embedded(batch)
            stop.check()

        def on_commit(done: tuple[PartEnd, Commit]) -> None:
            end, commit = done
            progress.committed(end.split, end.read, len(commit.rejected))
            self._rows += commit.rows + len(commit.rejected)
            self._rejected += len(commit.rejected)
            if commit.is_last:
                on_finished(end.split)
            self._check_rejected(commit)

        opened: dict[int, tuple[PartName, int]] = {}
        parts: dict[PartName, OpenPart] = {}
        failed: list[StellaError] = []
        model = self._model
        open_rows = OPEN_ROWS.get(model.platform, DEFAULT_OPEN_ROWS)
        with (
            stop.deferred(),
            BackgroundWriter(WRITTEN_BEHIND, on_commit) as writer,
            prefetch(self._read(splits, failed, stop), READ_AHEAD) as reading,
            prefetch(map(self._tokenized, reading), READ_AHEAD) as coming,
        ):
            chunks = takewhile(lambda chunk: not (chunk.is_first and stop.requested), coming)
            groups = _tokens(chunks, opened, parts)
            streamed = model.runner.stream(groups, model.max_seq_length, on_batch=on_batch, open_texts=open_rows)
            for number, embeddings in streamed:
                name, place = opened.pop(number)
                parts[name].embeddings[place] = embeddings
                if parts[name].is_embedded:
                    writer.do(self._commit, parts.pop(name))
        if failed:
            raise failed[0]

    def _check_rejected(self, commit: Commit) -> None:
        """Ends the job early where too many of the rows so far are rejected, with room for chance."""
        sure = self._rejected - 3 * sqrt(self._rejected)
        if sure > self._max_rejected * self._rows:
            raise too_many_rejected(self._rejected, self._rows, self._max_rejected, commit.rejected)

    def _read(
        self, splits: Iterable[tuple[Split, SplitCommits]], failed: list[StellaError], stop: GracefulShutdown
    ) -> Iterator[ReadRows]:
        """Reads one missing part after the other, until it is asked to stop or an input is damaged."""
        for split, done in splits:
            for read in self._missing_parts(split, done, failed):
                if read.is_first and stop.requested:
                    return
                yield read
            if failed:
                return

    def _missing_parts(self, split: Split, done: SplitCommits, failed: list[StellaError]) -> Iterator[ReadRows]:
        numbers = set(done.numbers)
        if self._job.was_repaired(split):
            rows = _Rows(self._job, split, Position())
            number = self._require_same_rows(split, rows)
            yield from self._parts(split, rows, number, set(), failed)
            return
        number = 0
        while not (done.last is not None and number > done.last):
            if number in numbers:
                number += 1
                continue
            number, start = self._resume(split, numbers, number)
            for read in self._parts(split, _Rows(self._job, split, start), number, numbers, failed):
                yield read
                number = read.name.number + 1
                if read.end and read.end.is_last:
                    return
            if failed:
                return

    def _resume(self, split: Split, numbers: set[int], number: int) -> tuple[int, Position]:
        """Where part `number` begins: after the part before it, which is made again, too, if its commit is damaged."""
        committed = Committed(self._job.store)
        while number:
            before = PartName(split.number, number - 1)
            [commit] = committed.read(self._job.store, [before]) if before in committed.files else [None]
            if commit and commit.key == self._job.key(split):
                return number, commit.after
            committed.invalidate(self._job.store, [before] if before in committed.files else [])
            number -= 1
            numbers.discard(number)
        return 0, Position()

    def _parts(
        self, split: Split, rows: "_Rows", number: int, committed: set[int], failed: list[StellaError]
    ) -> Iterator[ReadRows]:
        """The rows of parts from `number` on, up to the next part that is committed."""
        while number not in committed:
            yield from self._part(split, PartName(split.number, number), rows)
            if rows.error:
                failed.append(rows.error)
                if not self._job.inputs[rows.input].is_cut:
                    damaged.mark(self._job.store, rows.input, str(rows.error))
            if rows.is_at_end or rows.error:
                return
            number += 1

    def _part(self, split: Split, name: PartName, rows: "_Rows") -> Iterator[ReadRows]:
        """The rows of a part in chunks, none where an input is damaged before its first row."""
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
            yield ReadRows(name, taken, is_first, end)
            is_first = False

    def _require_same_rows(self, split: Split, rows: "_Rows") -> int:
        """Reads over what is committed of a repaired input; returns the number of the part after it.

        Raises:
          StellaError: its rows are not those that were embedded.
        """
        committed = Committed(self._job.store)
        names = [name for name in committed.names() if name.split == split.number]
        for commit in committed.read(self._job.store, names):
            digest = RowsDigest()
            for row in rows.take(commit.rows + len(commit.rejected) if commit else 0):
                digest.add(row.row)
            if commit is None or digest.hexdigest() != commit.digest:
                name = self._job.inputs[rows.input].location
                raise StellaError(f"{name} was damaged, and its rows before that are now different; use another --out.")
        return len(names)

    def _tokenized(self, read: ReadRows) -> Chunk:
        texts = [row.row.text for row in read.rows if isinstance(row.row, Row)]
        kept = [row._replace(row=row.row._replace(text="")) if isinstance(row.row, Row) else row for row in read.rows]
        tokens = self._model.tokenize(texts, self._job.fingerprint["prompt"])
        packed = [Tokens(array("i", text.ids), text.truncated) for text in tokens]  # a tenth of a list's memory
        return Chunk(read.name, kept, packed, read.is_first, read.end)

    def _commit(self, part: OpenPart) -> tuple[PartEnd, Commit]:
        """Writes a part's files, and commits it."""
        job, store, name, end = self._job, self._job.store, part.chunks[0].name, part.chunks[-1].end
        assert end
        rows = [row for chunk in part.chunks for row in chunk.rows]
        texts = [text for chunk in part.chunks for text in chunk.tokens]
        in_order = [part.embeddings[place] for place in range(len(part.chunks))]
        embeddings = [np.concatenate(of_head) for of_head in zip(*in_order, strict=True)]
        part.embeddings.clear()
        embeddings = finished(job.fingerprint, embeddings)
        precision, dims = job.fingerprint["precision"], job.fingerprint["dims"]
        finite = np.logical_and.reduce([finite_rows(vectors, precision) for vectors in embeddings])
        rejected = list(_rejected(job, rows, finite))
        valid = [row for row in rows if isinstance(row.row, Row)]
        sound = [row for row, is_finite in zip(valid, finite, strict=True) if is_finite]
        tokens = [text for text, is_finite in zip(texts, finite, strict=True) if is_finite]
        packed = [
            quantize(vectors[finite], precision, job.ranges.get(dim))
            for dim, vectors in zip(dims, embeddings, strict=True)
        ]
        kept = kept_columns([row.row for row in sound if isinstance(row.row, Row)], job.row_fields)
        computed = dict(zip(column_names(job.fingerprint), packed, strict=True))
        table = part_table([row.row.id or "" for row in sound], computed, tokens, kept)
        self._require_same_job()
        size, sha256 = write_part(store, name.file, table) if sound else (0, "")
        own_ids = any(row.row.id != job.position(row.input, row.row.number) for row in sound)
        commit = Commit(
            key=job.key(end.split),
            name=name,
            is_last=end.is_last,
            after=end.after,
            rows=len(sound),
            tokens=sum(table["n_tokens"].to_pylist()),
            size=size,
            sha256=sha256,
            ids_sha256=write_ids(store, name, sound) if sound else "",
            digest=end.digest,
            own_ids=own_ids,
            rejected=tuple(rejected),
        )
        write_commit(store, commit)
        return end, commit

    def _require_same_job(self) -> None:
        """Raises StellaError where somebody has started another job in the directory since."""
        fields = read_fields(self._job.store)
        if fields is None or fields["fingerprint"] != self._job.fingerprint:
            raise StellaError(
                f"{self._job.store}/{JOB} is not the one that this process started with; nothing was written."
            )


class _Rows:
    """The rows of a split from a position on, taken so many at a time.

    Attributes:
      error: what ended the reading early.
      input: the number of the file that was read last.
    """

    def __init__(self, job: Job, split: Split, start: Position):
        self.start = start
        self.error: StellaError | None = None
        self.input = split.pieces[min(start.piece, len(split.pieces) - 1)].input
        self._pieces = split.pieces
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
        except StellaError as error:
            self.error = error
            return None


def _bytes_before(job: Job, split: Split, after: Position) -> int:
    """Bytes of a split that lie before a position, as far as that is known."""
    piece = split.pieces[after.piece]
    before = sum(each.stop - each.start for each in split.pieces[: after.piece])
    inside = after.offset - piece.start if job.inputs[piece.input].counts_bytes else 0
    return before + max(0, inside)


def _tokens(
    chunks: Iterable[Chunk], opened: dict[int, tuple[PartName, int]], parts: dict[PartName, OpenPart]
) -> Iterator[list[Tokens]]:
    """The texts of chunks, which are added to their `parts`; `opened` says by their number which they are."""
    for number, chunk in enumerate(chunks):
        part = parts.setdefault(chunk.name, OpenPart())
        opened[number] = chunk.name, len(part.chunks)
        part.chunks.append(chunk)
        yield chunk.tokens


def _rejected(job: Job, rows: Sequence[PositionedRow], finite: np.ndarray) -> Iterator[dict[str, object]]:
    """What rejected.jsonl says of the rows that cannot be embedded, or came out as NaN or infinity."""
    is_finite = iter(finite.tolist())
    for item, number, _ in rows:
        if isinstance(item, Rejected):
            yield job.inputs[number].rejected_fields(item)
        elif not next(is_finite):
            yield job.inputs[number].rejected_fields(Rejected(item.input, item.number, item.id, NOT_FINITE))


def too_many_rejected(
    rejected: int, rows: int, max_rejected: float, examples: Sequence[dict[str, object]]
) -> StellaError:
    example = ""
    if examples:
        where = "@{byte}" if "byte" in examples[0] else ":{row}"
        example = "; for example {input}{where}: {reason}".replace("{where}", where).format(**examples[0])
    return StellaError(
        f"{rejected} of {rows} rows are rejected ({rejected / max(1, rows):.2%}), and --max-rejected allows "
        f"{max_rejected:.2%}{example}. Fix the inputs or raise --max-rejected."
    )
