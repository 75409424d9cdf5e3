"""Embeds splits on this process's devices, while threads read and tokenize ahead and write finished parts."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import takewhile
from math import sqrt

from stella_jax.batching import Batch
from stella_jax.graceful_shutdown import GracefulShutdown
from stella_jax.job.chunks import Chunk, ChunkReader, PartEnd
from stella_jax.job.commits import Commit, PartName, SplitCommits
from stella_jax.job.job import Job
from stella_jax.job.part_buffer import PartBuffer, commit_part
from stella_jax.job.pipeline import BackgroundWriter, prefetch
from stella_jax.job.progress import Progress
from stella_jax.job.rejected import too_many_rejected
from stella_jax.pretrained import PretrainedModel
from stella_jax.readers.splits import Split
from stella_jax.tokenizer.tokenizer import Tokens

# Chunks that are read ahead of the tokenizer, and tokenized ahead of the device; parts that wait to be written.
CHUNKS_AHEAD = 2
PARTS_BEHIND = 1

# Rows of all open parts, so that batches are full even if parts are small.
OPEN_ROWS = {"cpu": 512}
DEFAULT_OPEN_ROWS = 65_536


class Worker:
    """Embeds and commits splits. The same split gives the same bytes, however often and wherever it is embedded.

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
        """Embeds and commits the missing parts of splits.

        Args:
          on_finished: called with each split once its last part is committed.

        Raises:
          StellaError: an input is damaged (earlier rows are committed), too many rows are rejected, or the directory
            now holds another job.
          Stopped: a stop was requested; parts that were finished in time are committed.
        """

        def on_batch(batch: Batch) -> None:
            progress.on_batch(batch)
            stop.check()

        chunk_of_group: dict[int, tuple[PartName, int]] = {}
        parts: dict[PartName, PartBuffer] = {}
        model, reader, prompt = self._model, ChunkReader(self._job), self._job.fingerprint["prompt"]
        open_rows = OPEN_ROWS.get(model.platform, DEFAULT_OPEN_ROWS)
        with (
            stop.deferred(),
            BackgroundWriter(PARTS_BEHIND, partial(self._on_commit, progress, on_finished)) as writer,
            prefetch(reader.read(splits), CHUNKS_AHEAD) as chunks,
            prefetch((chunk.tokenized(model, prompt) for chunk in chunks), CHUNKS_AHEAD) as tokenized,
        ):
            wanted = takewhile(lambda chunk: not (chunk.is_first and stop.requested), tokenized)
            groups = _token_groups(wanted, chunk_of_group, parts)
            results = model.runner.stream(groups, model.max_seq_length, on_batch=on_batch, open_texts=open_rows)
            for number, embeddings in results:
                name, i = chunk_of_group.pop(number)
                parts[name].embeddings[i] = embeddings
                if parts[name].is_embedded:
                    writer.submit(commit_part, self._job, parts.pop(name))
        if reader.error:
            raise reader.error

    def _on_commit(
        self, progress: Progress, on_finished: Callable[[Split], object], done: tuple[PartEnd, Commit]
    ) -> None:
        end, commit = done
        progress.on_commit(end.split, end.read, len(commit.rejected))
        self._rows += commit.rows + len(commit.rejected)
        self._rejected += len(commit.rejected)
        if commit.is_last:
            on_finished(end.split)
        self._check_rejected(commit)

    def _check_rejected(self, commit: Commit) -> None:
        """Ends the job early if significantly more rows are rejected than allowed (three standard deviations)."""
        if self._rejected - 3 * sqrt(self._rejected) > self._max_rejected * self._rows:
            raise too_many_rejected(self._rejected, self._rows, self._max_rejected, commit.rejected)


def _token_groups(
    chunks: Iterable[Chunk], chunk_of_group: dict[int, tuple[PartName, int]], parts: dict[PartName, PartBuffer]
) -> Iterator[list[Tokens]]:
    """The tokens of each chunk; adds the chunk to its part, and notes its part and index by the group's number."""
    for number, chunk in enumerate(chunks):
        part = parts.setdefault(chunk.name, PartBuffer())
        chunk_of_group[number] = chunk.name, len(part.chunks)
        part.chunks.append(chunk)
        yield chunk.tokens
