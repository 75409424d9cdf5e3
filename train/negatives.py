"""Which of the nearest rows of a corpus become an anchor's negatives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stella_jax.errors import StellaError

# Anchors that share one generator of random numbers: what is drawn for one does not depend on how many are mined.
DRAWN_TOGETHER = 1024


@dataclass(frozen=True, slots=True)
class MiningOptions:
    """The parameters of sentence-transformers' `mine_hard_negatives`, by its names; scores are cosine similarities.

    Attributes:
      range_min: how many of the nearest candidates are left out: they may be positives that nobody has marked.
      range_max: how many of the nearest are considered; None is enough for `num_negatives`, ten times as many where
        some may be refused.
      max_score, min_score: of a negative.
      absolute_margin: by how much a negative's score must lie below the anchor's lowest positive score.
      relative_margin: the same, as a share of that score.
      num_negatives: of each anchor.
      sampling_strategy: the first of the candidates that are left, or some of them at random.
      include_positives: keep the anchor's positives among the candidates.
      seed: of what is drawn at random.
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
            raise StellaError(f"min_score: {self.min_score} is above max_score, {self.max_score}; lower the one.")
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise StellaError(
                f"range_max: {self.num_negatives} negatives do not fit between range_min = {self.range_min} and "
                f"range_max = {self.range_max}; raise range_max or lower the others."
            )

    def last_rank(self, most_positives: int) -> int:
        """`range_max`, or what it is by default, where no anchor has more positives."""
        if self.range_max is not None:
            return self.range_max
        refuses = (self.absolute_margin, self.relative_margin, self.max_score) != (None, None, None)
        return self.range_min + self.num_negatives * (10 if refuses else 1) + most_positives

    def advice(self) -> str:
        """What to change where too few negatives are left."""
        lower = ["range_min"] if self.range_min else []
        lower += [
            name for name in ("absolute_margin", "relative_margin", "min_score") if getattr(self, name) is not None
        ]
        more = " or max_score" if self.max_score is not None else ""
        return f"raise range_max{more}" + (f", or lower {' or '.join(lower)}" if lower else "")


@dataclass(frozen=True, slots=True)
class Positives:
    """Pairs of an anchor and a positive, sorted by anchor; every anchor has one at least.

    Attributes:
      anchors: (p,) from 0.
      rows: (p,) of the corpus.
      scores: (p,) float32.
    """

    anchors: np.ndarray
    rows: np.ndarray
    scores: np.ndarray

    @property
    def firsts(self) -> np.ndarray:
        """The place of each anchor's first pair."""
        return np.flatnonzero(np.diff(self.anchors, prepend=-1))

    def by_rank(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Anchors and rows of the pairs that are the first of their anchor, then of the second ones, and so on."""
        ranks = np.arange(len(self.anchors)) - self.firsts[self.anchors]
        for rank in range(int(ranks.max(initial=-1)) + 1):
            pairs = ranks == rank
            yield self.anchors[pairs], self.rows[pairs]


@dataclass(slots=True)
class Negatives:
    """What was chosen.

    Attributes:
      rows: (anchors, num_negatives) of the corpus, nearest first; -1 where there was none.
      scores: the same shape, float32; -inf where there was none.
      skipped: candidates refused, by the option that refused them.
      considered: how many candidates there were.
    """

    rows: np.ndarray
    scores: np.ndarray
    skipped: dict[str, int] = field(default_factory=dict)
    considered: int = 0

    @property
    def counts(self) -> np.ndarray:
        """(anchors,) how many were found."""
        return (self.rows >= 0).sum(axis=1)


def joined(blocks: Sequence[Negatives]) -> Negatives:
    """The negatives of blocks of anchors, one after the other."""
    skipped = {name: sum(block.skipped[name] for block in blocks) for name in blocks[0].skipped}
    rows, scores = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("rows", "scores"))
    return Negatives(rows, scores, skipped, sum(block.considered for block in blocks))


def choose(
    scores: np.ndarray, rows: np.ndarray, positives: Positives, options: MiningOptions, last: int, first: int = 0
) -> Negatives:
    """The negatives of some anchors.

    Args:
      scores, rows: (anchors, k) of the nearest rows of the corpus, nearest first, as `nearest` gives them, for k =
        `last` and the most positives of an anchor together.
      positives: of these anchors.
      last: what `MiningOptions.last_rank` says.
      first: the number of the first anchor among all, a multiple of DRAWN_TOGETHER, for what is drawn at random.
    """
    scores = scores.copy()
    if not options.include_positives:
        for anchors, own in positives.by_rank():
            scores[anchors] = np.where(rows[anchors] == own[:, None], -np.inf, scores[anchors])
    considered = int((scores != -np.inf).sum())
    skipped = _refuse(scores, positives, options)
    places = _left(scores, options.range_min, last)
    if options.sampling_strategy == "random":
        places = _drawn(places, options, first)
    places = places[:, : options.num_negatives]
    is_missing = places < 0
    chosen = np.where(is_missing, -np.inf, np.take_along_axis(scores, places, axis=1))
    return Negatives(np.where(is_missing, -1, np.take_along_axis(rows, places, axis=1)), chosen, skipped, considered)


def _refuse(scores: np.ndarray, positives: Positives, options: MiningOptions) -> dict[str, int]:
    """Sets the scores of candidates that the options refuse to -inf; how many, by option, those refused before too."""
    lowest = np.minimum.reduceat(positives.scores, positives.firsts)[:, None]
    skipped: dict[str, int] = {}

    def refuse(name: str, refused: np.ndarray) -> None:
        skipped[name] = int((refused & (scores != -np.inf)).sum())
        scores[refused] = -np.inf

    if options.absolute_margin is not None:
        refuse("absolute_margin", scores + options.absolute_margin > lowest)
    if options.relative_margin is not None:
        refuse("relative_margin", scores > lowest - abs(lowest) * options.relative_margin)
    if options.max_score is not None:
        refuse("max_score", scores > options.max_score)
    if options.min_score is not None:
        refuse("min_score", scores < options.min_score)
    return skipped


def _left(scores: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Places (anchors, stop - start) of the candidates that are left, from rank `start` to `stop`; then -1."""
    is_left = scores != -np.inf
    ranks = is_left.cumsum(axis=1) - 1
    anchors, places = np.nonzero(is_left & (ranks >= start) & (ranks < stop))
    found = np.full((len(scores), stop - start), -1)
    found[anchors, ranks[anchors, places] - start] = places
    return found


def _drawn(places: np.ndarray, options: MiningOptions, first: int) -> np.ndarray:
    """Some places of each row, drawn at random without replacement, in their order; all where they are too few."""
    count, width = places.shape
    starts = range(0, count, DRAWN_TOGETHER)
    draws = [
        np.random.default_rng([options.seed, first + i]).random((min(DRAWN_TOGETHER, count - i), width)) for i in starts
    ]
    keys = np.where(places < 0, np.inf, np.concatenate(draws or [np.empty((0, width))]))
    drawn = np.argsort(keys, axis=1, kind="stable")[:, : options.num_negatives]
    return np.take_along_axis(places, np.sort(drawn, axis=1), axis=1)
