"""What a job would be, from a scan of its inputs and a sample of its rows; nothing of it is written."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from stella_jax.batching import bucket_lengths, rows_of
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.job.job import Job, open_job
from stella_jax.job.progress import Progress
from stella_jax.job.reader import Reader
from stella_jax.job.request import Request
from stella_jax.job.rows import Row
from stella_jax.job.settings import fingerprint_of
from stella_jax.job.store import open_store
from stella_jax.tokenizer import Tokens

# Rows from the beginning of parts that lie evenly over the job.
SAMPLED_PARTS = 32
SAMPLED_ROWS = 512

MEASURED_SECONDS = 3.0
BAR = 40


@dataclass(frozen=True, slots=True)
class Estimate:
    """A job before it is run.

    Attributes:
      sampled: token counts of the sampled texts.
      truncated: how many of them are cut.
      lengths: of the buckets.
      rate: tokens a second of a chip, padding not counted.
      measured: on what the rate was measured, None where it was given.
    """

    rows: int
    rejected: int
    parts: int
    part_rows: int
    bytes_per_row: int
    sampled: np.ndarray
    truncated: int
    lengths: Sequence[int]
    rate: float
    measured: str | None

    @property
    def buckets(self) -> np.ndarray:
        """Number of the bucket of each sampled text."""
        return np.searchsorted(self.lengths, self.sampled)

    @property
    def tokens(self) -> float:
        """Of the whole job."""
        return float(self.sampled.mean()) * (self.rows - self.rejected)

    @property
    def padding(self) -> float:
        """Share of padding in what is computed."""
        return 1 - float(self.sampled.sum() / np.asarray(self.lengths)[self.buckets].sum())

    def __str__(self) -> str:
        size = (self.rows - self.rejected) * self.bytes_per_row / 1e9
        at = f"measured: {self.measured}" if self.measured else "given"
        hours = self.tokens / self.rate / 3600
        cut = f"{self.truncated / len(self.sampled):.1%} of the rows cut"
        lines = [
            f"rows        {self.rows}, of which {self.rejected} would be rejected",
            f"tokens      {self.tokens:.4g}, {self.sampled.mean():.1f} a row, {cut} (from {len(self.sampled)} rows)",
            f"padding     {self.padding:.1%} of what is computed",
            f"parts       {self.parts} of {self.part_rows} rows, {size:.3g} GB before compression",
            f"rate        {self.rate:.4g} tokens/s of a chip ({at})",
            f"chip-hours  {hours:.3g} ({hours * 3600:.0f} s on one chip)",
            "",
            "bucket  share of rows",
            *self._histogram(),
        ]
        return "\n".join(lines)

    def _histogram(self) -> list[str]:
        shares = np.bincount(self.buckets, minlength=len(self.lengths)) / len(self.sampled)
        widest = shares.max()
        return [
            f"{length:6}  {share:6.1%}  {'#' * round(BAR * share / widest)}".rstrip()
            for length, share in zip(self.lengths, shares, strict=True)
            if share
        ]


def estimate_job(request: Request, rate: float | None = None, shown: bool = False) -> Estimate:
    """Scans the inputs, tokenizes a sample and, where no rate is given, measures one on this machine.

    Args:
      rate: tokens a second of a chip.
      shown: a bar on stderr.

    Raises:
      StellaError: as the job would; too many rejected rows are no error here.
    """
    model = request.load()
    settings = request.settings(model)
    with tempfile.TemporaryDirectory(dir=open_store(request.out).scratch) as folder:
        store = open_store(Path(folder))
        with Progress(store, shown=shown) as progress:
            job = open_job(store, request.inputs, settings, fingerprint_of(model, settings), 1.0, progress)
        tokens = _sample(job, model)
    counts = np.array([len(text.ids) for text in tokens])
    lengths = bucket_lengths(model.max_seq_length)
    measured = None
    if rate is None:
        rate, measured = _measure(model, tokens, counts, lengths)
    return Estimate(
        rows=job.plan.rows,
        rejected=job.fields["rejected"],
        parts=len(job.parts),
        part_rows=settings.part_rows,
        bytes_per_row=4 * sum(model.runner.dims),
        sampled=counts,
        truncated=sum(text.truncated for text in tokens),
        lengths=lengths,
        rate=rate,
        measured=measured,
    )


def _sample(job: Job, model: Stella) -> list[Tokens]:
    chosen = np.unique(np.linspace(0, len(job.parts) - 1, SAMPLED_PARTS).round().astype(int))
    reader = Reader(dict(enumerate(job.sources)), job.settings.fields)
    rows = (row for number in chosen for row in islice(job.rows(reader, job.parts[number]), SAMPLED_ROWS))
    texts = [row.text for _, row in rows if isinstance(row, Row)]
    if not texts:
        raise StellaError("none of the rows looked at can be embedded; look at the inputs.")
    return model.tokenize(texts, job.settings.prompt)


def _measure(model: Stella, tokens: Sequence[Tokens], counts: np.ndarray, lengths: Sequence[int]) -> tuple[float, str]:
    """Tokens a second of a chip in the bucket that holds the middle token, and what was measured.

    Other buckets differ little: all have about the same number of tokens. Padding is taken off at the sample's rate.
    """
    computed = np.asarray(lengths)[np.searchsorted(lengths, counts)]
    middle = np.searchsorted(np.cumsum(np.sort(counts)), counts.sum() / 2)
    length, chips = int(np.sort(computed)[middle]), model.mesh.size
    rows = model.mesh.shape["data"] * rows_of(length, model.runner.token_budget)
    alike = [text for text, padded in zip(tokens, computed, strict=True) if padded == length]
    batch = [alike[i % len(alike)] for i in range(rows)]
    model.embed_tokens(batch)  # compiles
    begin, rounds = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < MEASURED_SECONDS:
        model.embed_tokens(batch * 4)
        rounds += 4
    useful = counts.sum() / computed.sum()
    return rounds * rows * length * useful / seconds / chips, f"{rows} x {length} on {chips} x {model.platform}"
