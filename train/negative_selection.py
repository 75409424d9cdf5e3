"""Selection of an anchor's negatives among the nearest rows of a corpus."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stella_jax.errors import StellaError

# Anchors of one random generator, so that an anchor's sample does not depend on the size of a block.
ANCHORS_PER_SEED = 1024


@dataclass(frozen=True, slots=True)
class MiningOptions:
    """Parameters of sentence-transformers' `mine_hard_negatives`, by the same names; scores are cosine similarities.

    Attributes:
      range_min: number of nearest candidates to skip, as they may be unlabeled positives.
      range_max: number of nearest candidates to consider; None is `range_min + num_negatives`, with ten times the
        negatives if margins or max_score may skip some.
      max_score, min_score: bounds of a negative's score.
      absolute_margin: how far a negative's score must be below the anchor's lowest positive score.
      relative_margin: the same as a share of that score.
      num_negatives: number of negatives for each anchor.
      sampling_strategy: "top" takes the nearest remaining candidates, "random" a sample of them.
      include_positives: keep the anchor's positives as candidates.
      seed: of the random sample.
    """

    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    num_negatives: int = 3
    sampling_strategy: Literal["top", "random"] = "top"
    include_positives: bool = False
    seed: int = 42

    def __post_init__(self):
        for name, least in (("range_min", 0), ("num_negatives", 1), ("range_max", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise StellaError(f"{name}: {value} is below {least}; use {least} or more.")
        for name in ("max_score", "min_score", "relative_margin", "absolute_margin"):
            value, most = getattr(self, name), 2 if name == "absolute_margin" else 1
            if value is not None and not -most <= value <= most:
                raise StellaError(f"{name}: {value} is out of range; use a number from {-most} to {most}.")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise StellaError(f"min_score: {self.min_score} is above max_score = {self.max_score}; lower it.")
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise StellaError(
                f"range_max: {self.num_negatives} negatives do not fit between range_min = {self.range_min} and "
                f"range_max = {self.range_max}; raise range_max or lower the others."
            )

    def last_rank(self, most_positives: int) -> int:
        """`range_max`, or its default if no anchor has more positives."""
        if self.range_max is not None:
            return self.range_max
        skips = (self.absolute_margin, self.relative_margin, self.max_score) != (None, None, None)
        return self.range_min + self.num_negatives * (10 if skips else 1) + most_positives

    def advice(self) -> str:
        """Which options to change if too few negatives are left."""
        lower = ["range_min"] if self.range_min else []
        lower += [
            name for name in ("absolute_margin", "relative_margin", "min_score") if getattr(self, name) is not None
        ]
        more = " or max_score" if self.max_score is not None else ""
        return f"raise range_max{more}" + (f", or lower {' or '.join(lower)}" if lower else "")


@dataclass(frozen=True, slots=True)
class Positives:
    """Pairs of an anchor and a positive, sorted by anchor; every anchor has at least one.

    Attributes:
      anchors: (p,) indices of anchors, from 0.
      rows: (p,) the positives' rows of the corpus.
      scores: (p,) float32.
    """

    anchors: np.ndarray
    rows: np.ndarray
    scores: np.ndarray

    @property
    def firsts(self) -> np.ndarray:
        """The index of each anchor's first pair."""
        return np.flatnonzero(np.diff(self.anchors, prepend=-1))

    def by_rank(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Anchors and rows of each anchor's first pair, then of each anchor's second pair, and so on."""
        ranks = np.arange(len(self.anchors)) - self.firsts[self.anchors]
        for rank in range(int(ranks.max(initial=-1)) + 1):
            pairs = ranks == rank
            yield self.anchors[pairs], self.rows[pairs]


@dataclass(slots=True)
class Negatives:
    """The chosen negatives of anchors.

    Attributes:
      rows: (anchors, num_negatives) rows of the corpus, nearest first; -1 for none.
      scores: (anchors, num_negatives) float32; -inf for none.
      skipped: number of candidates skipped by each option.
      considered: number of candidates.
    """

    rows: np.ndarray
    scores: np.ndarray
    skipped: dict[str, int] = field(default_factory=dict)
    considered: int = 0

    @property
    def counts(self) -> np.ndarray:
        """(anchors,) number of negatives of each anchor."""
        return (self.rows >= 0).sum(axis=1)


def concatenate(blocks: Sequence[Negatives]) -> Negatives:
    """The negatives of consecutive blocks of anchors."""
    skipped = {name: sum(block.skipped[name] for block in blocks) for name in blocks[0].skipped}
    rows, scores = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("rows", "scores"))
    return Negatives(rows, scores, skipped, sum(block.considered for block in blocks))


def choose(
    scores: np.ndarray, rows: np.ndarray, positives: Positives, options: MiningOptions, last: int, first: int = 0
) -> Negatives:
    """Chooses the negatives of a block of anchors.

    Args:
      scores, rows: (anchors, k) the nearest rows of the corpus, nearest first, from `nearest`; k is `last` plus the
        largest number of positives of an anchor.
      positives: of these anchors.
      options: the parameters.
      last: `MiningOptions.last_rank`.
      first: index of the block's first anchor, a multiple of ANCHORS_PER_SEED, for random samples.
    """
    scores = scores.copy()
    if not options.include_positives:
        for anchors, own in positives.by_rank():
            scores[anchors] = np.where(rows[anchors] == own[:, None], -np.inf, scores[anchors])
    considered = int((scores != -np.inf).sum())
    skipped = _skip(scores, positives, options)
    places = _remaining(scores, options.range_min, last)
    if options.sampling_strategy == "random":
        places = _sample(places, options, first)
    places = places[:, : options.num_negatives]
    is_missing = places < 0
    chosen = np.where(is_missing, -np.inf, np.take_along_axis(scores, places, axis=1))
    return Negatives(np.where(is_missing, -1, np.take_along_axis(rows, places, axis=1)), chosen, skipped, considered)


def _skip(scores: np.ndarray, positives: Positives, options: MiningOptions) -> dict[str, int]:
    """Sets the scores of candidates that an option excludes to -inf; returns their number by option."""
    lowest = np.minimum.reduceat(positives.scores, positives.firsts)[:, None]
    skipped: dict[str, int] = {}

    def skip(name: str, excluded: np.ndarray) -> None:
        skipped[name] = int((excluded & (scores != -np.inf)).sum())
        scores[excluded] = -np.inf

    if options.absolute_margin is not None:
        skip("absolute_margin", scores + options.absolute_margin > lowest)
    if options.relative_margin is not None:
        skip("relative_margin", scores > lowest - abs(lowest) * options.relative_margin)
    if options.max_score is not None:
        skip("max_score", scores > options.max_score)
    if options.min_score is not None:
        skip("min_score", scores < options.min_score)
    return skipped


def _remaining(scores: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Columns (anchors, stop - start) of the remaining candidates of ranks `start` to `stop`, padded with -1."""
    remains = scores != -np.inf
    ranks = remains.cumsum(axis=1) - 1
    anchors, places = np.nonzero(remains & (ranks >= start) & (ranks < stop))
    found = np.full((len(scores), stop - start), -1)
    found[anchors, ranks[anchors, places] - start] = places
    return found


def _sample(places: np.ndarray, options: MiningOptions, first: int) -> np.ndarray:
    """A random sample of each row without replacement, in the row's order; all of it if there are too few."""
    count, width = places.shape
    draws = [
        np.random.default_rng([options.seed, first + i]).random((min(ANCHORS_PER_SEED, count - i), width))
        for i in range(0, count, ANCHORS_PER_SEED)
    ]
    keys = np.where(places < 0, np.inf, np.concatenate(draws or [np.empty((0, width))]))
    sample = np.argsort(keys, axis=1, kind="stable")[:, : options.num_negatives]
    return np.take_along_axis(places, np.sort(sample, axis=1), axis=1)
