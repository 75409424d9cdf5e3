"""Runs parts of a job on this process's devices: rows are read and tokenized ahead of them, files written behind."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import pyarrow as pa

from stella_jax import similarity
from stella_jax.batching import Batch
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.job.job import JOB, Job, check_rejected
from stella_jax.job.pipeline import Behind, ahead
from stella_jax.job.plan import Part
from stella_jax.job.progress import Progress
from stella_jax.job.reader import Reader
from stella_jax.job.receipts import Receipt, has_receipt, write_receipt
from stella_jax.job.rows import Rejected, Row
from stella_jax.job.stop import Stop
from stella_jax.job.write import part_table, write_part
from stella_jax.tokenizer import Tokens

# Texts given to the tokenizer at once: what it builds around the ids of a text is many times their size.
TOKENIZED_ROWS = 256

# Parts read while one is on the device, and parts that wait to be written.
READ_AHEAD = 1
WRITTEN_BEHIND = 1

NOT_FINITE = "its embedding is not finite"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A part before the device: its rows in order (their texts dropped), and the sound ones' tokens."""

    part: Part
    items: list[Row | Rejected]
    tokens: list[Tokens]


class Worker:
    """Embeds and commits parts; doing one twice, here or elsewhere, gives the same bytes.

    Args:
      max_rejected: share of the job's rows that may be rejected.
    """

    def __init__(self, model: Stella, job: Job, max_rejected: float):
        self._model = model
        self._job = job
        self._max_rejected = max_rejected
        self._reader = Reader(dict(enumerate(job.sources)), job.settings.fields)
        self._lost = 0

    def run(self, parts: Iterable[Part], progress: Progress, stop: Stop) -> None:
        """Embeds and commits these parts.

        Raises:
          StellaError: an input has changed, too many rows came out not finite, or the folder is another job's by now.
          Stopped: it was asked to stop; the parts that were finished in time are committed.
        """

        def report(batch: Batch) -> None:
            progress.embedded(batch)
            stop.check()

        def committed(receipt: Receipt) -> None:
            progress.committed(receipt.part)
            self._lost += sum(row.reason == NOT_FINITE for row in receipt.rejected)
            check_rejected(self._job.fields["rejected"] + self._lost, self._job.plan.rows, self._max_rejected)

        opened: list[Prepared] = []
        runner, longest = self._model.runner, self._model.max_seq_length
        prepared = self._prepared(parts, progress, stop)
        with stop.patience(), Behind(WRITTEN_BEHIND, committed) as behind, ahead(prepared, READ_AHEAD) as coming:
            begun = takewhile(lambda _: not stop.asked, coming)
            groups = _kept(begun, opened, lambda item: item.tokens)
            for number, embeddings in runner.stream(groups, longest, on_batch=report):
                behind.do(self._commit, opened[number], embeddings)
                opened[number] = replace(opened[number], items=[], tokens=[])

    def _prepared(self, parts: Iterable[Part], progress: Progress, stop: Stop) -> Iterator[Prepared]:
        """Reads and tokenizes one part after the other, until it is asked to stop."""
        for part in parts:
            if stop.asked:
                return
            if has_receipt(self._job.store, part):  # another process has done it since
                continue
            progress.opened(part.name)
            items = self._job.read(self._reader, part)
            tokens = self._tokenize([item.text for item in items if isinstance(item, Row)])
            progress.rejected(len(items) - len(tokens))
            yield Prepared(part, [item._replace(text="") if isinstance(item, Row) else item for item in items], tokens)

    def _tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        found: list[Tokens] = []
        for i in range(0, len(texts), TOKENIZED_ROWS):
            tokens = self._model.tokenize(texts[i : i + TOKENIZED_ROWS], self._job.settings.prompt)
            found += [Tokens(array("i", text.ids), text.truncated) for text in tokens]  # a tenth of a list's memory
        return found

    def _commit(self, prepared: Prepared, embeddings: Sequence[np.ndarray]) -> Receipt:
        """Writes a part's file, and commits it with its receipt."""
        rows = [item for item in prepared.items if isinstance(item, Row)]
        if self._job.settings.normalize:
            embeddings = [similarity.unit(vectors) for vectors in embeddings]
        finite = np.logical_and.reduce([np.isfinite(vectors).all(axis=1) for vectors in embeddings])
        lost = {rows[i].id for i in np.flatnonzero(~finite)}
        table = part_table([row.id for row in rows], embeddings, prepared.tokens)
        table = table.filter(pa.array(finite)) if lost else table
        part, store = prepared.part, self._job.store
        self._require_same_job()
        size, sha256 = write_part(store, part.file, table)
        rejected = tuple(_reject(item) for item in prepared.items if isinstance(item, Rejected) or item.id in lost)
        n_tokens = sum(table["n_tokens"].to_pylist())
        receipt = Receipt(self._job.key, part.name, table.num_rows, n_tokens, size, sha256, rejected)
        write_receipt(store, receipt)
        return receipt

    def _require_same_job(self) -> None:
        """Raises StellaError where somebody has begun another job in the folder since."""
        store = self._job.store
        if store.size(JOB) is None or store.read_json(JOB) != self._job.fields:
            raise StellaError(f"{store} holds another job than when this process began; nothing was written into it.")


def _reject(item: Row | Rejected) -> Rejected:
    return item if isinstance(item, Rejected) else Rejected(item.input, item.number, item.id, NOT_FINITE)


def _kept(items: Iterable[Prepared], keep: list[Prepared], part: Callable[[Prepared], list[Tokens]]) -> Iterator[list]:
    for item in items:
        keep.append(item)
        yield part(item)
