"""Estimates a job from a sample of its inputs, without writing anything."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, isnan, nan, sqrt
from typing import NamedTuple

import numpy as np

from stella_jax.batching import bucket_lengths, rows_of
from stella_jax.chips import ASSUMED_SHARE, Chips
from stella_jax.errors import StellaError
from stella_jax.flops import text_flops
from stella_jax.job.job import splits_of
from stella_jax.job.options import JobCommand, default_part_rows
from stella_jax.job.progress import Task
from stella_jax.pretrained import PretrainedModel
from stella_jax.quantization import vector_layout
from stella_jax.readers.first_rows import check_first_rows
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.kept_columns import resolve_types
from stella_jax.readers.rows import Row
from stella_jax.readers.sample import SampleBlock, sample_inputs
from stella_jax.tokenizer.tokenizer import Tokens

MEASURED_SECONDS = 3.0
BAR = 40
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


class Total(NamedTuple):
    """A number of the whole job, and its relative standard error; nan if there is only one block."""

    value: float
    error: float = 0.0

    def __str__(self) -> str:
        if not self.error:
            return f"{self.value:.0f}"
        return f"{self.value:.4g} {PLUS_MINUS} " + ("unknown" if isnan(self.error) else f"{self.error:.1%}")


class Rate(NamedTuple):
    """Tokens per second of a chip, without padding, and the source of that number."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a job.

    Attributes:
      rows, rejected: numbers of rows.
      cut: number of rows whose texts are too long.
      tokens, computed_tokens: without and with padding.
      row_bytes: of a row's vectors or scores.
      sampled: number of sampled texts.
      lengths: of the buckets.
      shares: of the rows, by bucket.
      task: of the job.
    """

    rows: Total
    rejected: Total
    cut: Total
    tokens: Total
    computed_tokens: Total
    parts: int
    part_rows: int
    row_bytes: int
    sampled: int
    lengths: Sequence[int]
    shares: np.ndarray
    rate: Rate
    chips: Chips | None
    task: Task

    @property
    def chip_hours(self) -> Total:
        return Total(self.tokens.value / self.rate.value / 3600, self.tokens.error)

    def __str__(self) -> str:
        valid, hours = self.rows.value - self.rejected.value, self.chip_hours
        many, machine = (self.chips.count, str(self.chips)) if self.chips else (1, "one chip")
        error = f" {PLUS_MINUS} {hours.error:.1%}, without the error of the rate" if hours.error > 0 else ""
        each = f"{self.tokens.value / valid:.1f} per row, {self.cut.value / valid:.1%} of the rows cut"
        size = f"{valid * self.row_bytes / 1e9:.3g} GB of {'vectors' if self.task == 'embedding' else 'scores'}"
        lines = [
            f"rows        {self.rows}, {self.rejected} of them invalid",
            f"tokens      {self.tokens}, {each} (from {self.sampled} rows)",
            f"padding     {1 - self.tokens.value / self.computed_tokens.value:.1%} of the computed tokens",
            f"parts       {self.parts} of at most {self.part_rows} rows, {size}",
            f"rate        {self.rate.value:.4g} tokens/s per chip ({self.rate.source})",
            f"chip-hours  {hours.value:.3g}{error} ({hours.value * 3600 / many:.0f} s on {machine})",
            *([f"{PLUS_MINUS}           one standard error, from the spread of the sample"] if error else []),
            "",
            "bucket  share of rows",
            *self._histogram(),
        ]
        return "\n".join(lines)

    def _histogram(self) -> Iterator[str]:
        widest = self.shares.max()
        for length, share in zip(self.lengths, self.shares, strict=True):
            if share:
                yield f"{length:6}  {share:6.1%}  {'#' * round(BAR * share / widest)}".rstrip()


class _Counts:
    """The counts of k blocks, scaled from the sampled rows to all rows of the block; float64 (k,).

    Attributes:
      weights, sizes: of the blocks.
      rows, rejected, cut: all rows, rejected rows, rows whose text is too long.
      tokens, computed_tokens: without and with padding.
      buckets: (k, buckets), rows in each bucket.
    """

    def __init__(self, blocks: Sequence[SampleBlock], tokens: Sequence[Sequence[Tokens]], lengths: Sequence[int]):
        counts = [np.array([len(text.ids) for text in each], int) for each in tokens]
        found = [np.bincount(np.searchsorted(lengths, each), minlength=len(lengths)) for each in counts]
        scale = np.array([block.rows / max(1, len(block.kept)) for block in blocks])
        self.weights = np.array([block.weight for block in blocks])
        self.sizes = np.array([block.size for block in blocks], float)
        self.rows = np.array([block.rows for block in blocks], float)
        self.rejected = scale * [len(block.kept) - len(each) for block, each in zip(blocks, tokens, strict=True)]
        self.cut = scale * [sum(text.truncated for text in each) for each in tokens]
        self.tokens = scale * [each.sum() for each in counts]
        self.buckets = scale[:, None] * np.array(found)
        self.computed_tokens = self.buckets @ np.asarray(lengths, float)
        self._is_exact = all(block.is_kept_whole for block in blocks)

    def total(self, numbers: np.ndarray, base: np.ndarray, known: float, is_all: bool) -> Total:
        """The total of the whole job, by the ratio to a base whose total is known."""
        ratio = float(self.weights @ numbers / (self.weights @ base))
        if (is_all and self._is_exact) or not ratio:
            return Total(round(ratio * known))
        k, residuals = len(numbers), self.weights * (numbers - ratio * base)
        if k == 1:
            return Total(ratio * known, nan)
        return Total(ratio * known, sqrt(k / (k - 1) * residuals @ residuals) / float(self.weights @ numbers))


def estimate_job(
    command: JobCommand, tokens_per_second: float | None = None, chips: Chips | None = None, rows: int | None = None
) -> Estimate:
    """Reads and tokenizes a sample of the inputs, in seconds, however large they are.

    Args:
      tokens_per_second: of a chip; without it and without `chips`, measured on this machine.
      chips: the machine of the job, whose rate is a stated share of its published peak.
      rows: the number of rows, if known.

    Raises:
      StellaError: as the job would, as far as the sample shows it; too many rejected rows are not an error here.
    """
    if chips and command.model.dtype == "float32":
        raise StellaError(
            "--chips: published peaks are for bfloat16 only; leave out --dtype or pass --tokens-per-second."
        )
    files = open_inputs(command.inputs, command.job.fields)
    if rows is None:
        check_first_rows(files, command.job.fields)
    blocks, is_all = sample_inputs(files, resolve_types([file.location for file in files], command.job.fields))
    model, tokens = _tokenize(command, blocks)
    lengths = bucket_lengths(model.max_seq_length)
    counts, size = _Counts(blocks, tokens, lengths), sum(file.size for file in files)

    def total(numbers: np.ndarray) -> Total:
        base, known = (counts.sizes, size) if rows is None else (counts.rows, rows)
        return counts.total(numbers, base, known, is_all)

    all_rows = total(counts.rows)
    part_rows = command.job.part_rows or default_part_rows(chips.kind.platform if chips else model.platform)
    buckets, splits = counts.weights @ counts.buckets, splits_of(files, command.job.split_bytes)
    return Estimate(
        rows=all_rows,
        rejected=total(counts.rejected),
        tokens=total(counts.tokens),
        computed_tokens=total(counts.computed_tokens),
        cut=total(counts.cut),
        parts=sum(max(1, ceil(split.size * all_rows.value / size / part_rows - 1e-9)) for split in splits),
        part_rows=part_rows,
        row_bytes=sum(_bytes(dim, command.job.precision) for dim in model.head_dims),
        sampled=sum(map(len, tokens)),
        lengths=lengths,
        shares=buckets / buckets.sum(),
        rate=_rate(tokens_per_second, chips, model, counts, tokens),
        chips=chips,
        task=command.job.task,
    )


def _tokenize(command: JobCommand, blocks: Sequence[SampleBlock]) -> tuple[PretrainedModel, list[list[Tokens]]]:
    """Opens the model, and tokenizes the sampled texts of each block.

    Raises:
      StellaError: all sampled rows are rejected.
    """
    texts = [[row.text for row in block.kept if isinstance(row, Row)] for block in blocks]
    if not any(texts):
        raise StellaError("inputs: all sampled rows are rejected; fix the inputs (--dry-run --all-rows lists them).")
    model = command.model.open()
    prompt = command.job.document_prompt(model)
    return model, [model.tokenize(each, prompt) if each else [] for each in texts]


def _bytes(dim: int, precision: str) -> int:
    """The size of an embedding or score in a part."""
    dtype, width = vector_layout(precision, dim)
    return np.dtype(dtype).itemsize * width


def _rate(
    given: float | None,
    chips: Chips | None,
    model: PretrainedModel,
    counts: _Counts,
    tokens: Sequence[Sequence[Tokens]],
) -> Rate:
    """The rate of a chip: an estimate from its published peak, as given, or measured on this machine."""
    lengths = bucket_lengths(model.max_seq_length)
    if chips:
        return _published(chips, model, counts, lengths)
    if given:
        return Rate(given, "given")
    return _measured(model, [text for each in tokens for text in each], lengths)


def _published(chips: Chips, model: PretrainedModel, counts: _Counts, lengths: Sequence[int]) -> Rate:
    """A stated share of a chip's published peak, divided by the FLOPs of a token of these texts."""
    flops = [text_flops(model.config, length) for length in lengths]
    per_token = float(counts.weights @ counts.buckets @ flops / (counts.weights @ counts.tokens))
    peak = chips.kind.bf16_flops
    source = f"an estimate: {ASSUMED_SHARE:.0%} of {chips.name}'s published {peak / 1e12:.0f} TFLOP/s of bfloat16, at "
    return Rate(ASSUMED_SHARE * peak / per_token, f"{source}{per_token / 1e9:.3g} GFLOP a token with its padding")


def _measured(model: PretrainedModel, tokens: Sequence[Tokens], lengths: Sequence[int]) -> Rate:
    """The measured rate in the bucket of the median token, less the sample's share of padding.

    Other buckets differ little, since all batches have about the same number of tokens.
    """
    counts = np.array([len(text.ids) for text in tokens])
    computed = np.asarray(lengths)[np.searchsorted(lengths, counts)]
    middle = np.searchsorted(np.cumsum(np.sort(counts)), counts.sum() / 2)
    length, chips = int(np.sort(computed)[middle]), model.mesh.size
    rows = model.mesh.shape["data"] * rows_of(length, model.runner.token_budget)
    alike = [text for text, padded in zip(tokens, computed, strict=True) if padded == length]
    batch = [alike[i % len(alike)] for i in range(rows)]
    model.run_tokens(batch)  # compiles
    begin, rounds = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < MEASURED_SECONDS:
        model.run_tokens(batch * 4)
        rounds += 4
    useful = counts.sum() / computed.sum()
    source = f"measured: {rows} texts of {length} tokens on {chips} x {model.platform}"
    return Rate(rounds * rows * length * useful / seconds / chips, source)
