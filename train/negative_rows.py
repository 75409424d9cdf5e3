"""Mined hard negatives as rows for training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from train.negative_selection import MiningOptions, Negatives, Positives
from train.pairs import Pairs


@dataclass(frozen=True, slots=True)
class Mined:
    """Pairs with the negatives of their anchors."""

    pairs: Pairs
    positives: Positives
    negatives: Negatives
    options: MiningOptions

    def __str__(self) -> str:
        """A summary in lines: negatives found, and candidates skipped."""
        counts, scores = self.negatives.counts, self.negatives.scores[self.negatives.rows >= 0]
        lines = [
            f"{counts.sum()} negatives for {len(counts)} anchors of {len(self.positives.rows)} pairs; "
            f"mean score {self.positives.scores.mean():.4f} of positives, {scores.mean():.4f} of negatives"
        ]
        for name, count in self.negatives.skipped.items():
            share = count / max(1, self.negatives.considered)
            lines.append(f"{name} = {getattr(self.options, name)} skipped {count} candidates ({share:.2%})")
        return "\n  ".join([*lines, self.shortage()] if counts.min() < self.options.num_negatives else lines)

    def shortage(self) -> str:
        """A sentence with the number of anchors that have too few negatives, and the options to change."""
        few = self.negatives.counts < self.options.num_negatives
        return (
            f"{few.sum()} of {len(few)} anchors ({few.mean():.2%}) have fewer than {self.options.num_negatives} "
            f"negatives; {self.options.advice()}"
        )

    def rows(self, output_format: str, output_scores: bool) -> Iterator[dict[str, Any]]:
        """Rows in one of `OUTPUT_FORMATS`, as dicts by column.

        Args:
          output_format: a key of `OUTPUT_FORMATS`.
          output_scores: add `score`, the similarity of the anchor and each text of the row, instead of a `label`.
        """
        for texts, score, label in OUTPUT_FORMATS[output_format](self):
            yield texts | ({"score": score} if output_scores else {} if label is None else {"label": label})

    def pair(self, index: int) -> tuple[int, str, str, float]:
        """A pair: index of its anchor, anchor, positive, and score."""
        anchor = int(self.positives.anchors[index])
        row, score = int(self.positives.rows[index]), float(self.positives.scores[index])
        return anchor, self.pairs.anchors[anchor], self.pairs.corpus[row], score

    def negatives_of(self, anchor: int) -> list[tuple[str, float]]:
        """Text and score of each negative of an anchor."""
        rows, scores = self.negatives.rows[anchor].tolist(), self.negatives.scores[anchor].tolist()
        return [(self.pairs.corpus[row], score) for row, score in zip(rows, scores, strict=True) if row >= 0]


# Texts by column; scores; labels, None if the column names are enough.
_Row = tuple[dict[str, Any], Any, Any]


def _triplets(mined: Mined) -> Iterator[_Row]:
    """A row for each negative of each pair."""
    for index in range(len(mined.positives.anchors)):
        number, anchor, positive, near = mined.pair(index)
        for negative, score in mined.negatives_of(number):
            yield {"anchor": anchor, "positive": positive, "negative": negative}, [near, score], None


def _tuples(mined: Mined) -> Iterator[_Row]:
    """A row for each pair that has all of its negatives."""
    for index in range(len(mined.positives.anchors)):
        number, anchor, positive, near = mined.pair(index)
        found = mined.negatives_of(number)
        if len(found) == mined.negatives.rows.shape[1]:
            names = ["negative", *(f"negative_{i}" for i in range(2, len(found) + 1))]
            negatives = {name: text for name, (text, _) in zip(names, found, strict=True)}
            yield {"anchor": anchor, "positive": positive, **negatives}, [near, *(score for _, score in found)], None


def _labeled_pairs(mined: Mined) -> Iterator[_Row]:
    """A row for each positive of an anchor, then for each of its negatives."""
    starts = mined.positives.firsts.tolist()
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(mined.positives.anchors)], strict=True)):
        for index in range(start, stop):
            _, anchor, positive, near = mined.pair(index)
            yield {"anchor": anchor, "positive": positive}, near, 1
        for negative, score in mined.negatives_of(number):
            yield {"anchor": mined.pairs.anchors[number], "positive": negative}, score, 0


def _labeled_lists(mined: Mined) -> Iterator[_Row]:
    """A row for each pair, with a list of its positive and all negatives."""
    for index in range(len(mined.positives.anchors)):
        number, anchor, positive, near = mined.pair(index)
        found = mined.negatives_of(number)
        if found:
            texts, scores = [positive, *(text for text, _ in found)], [near, *(score for _, score in found)]
            yield {"anchor": anchor, "positive": texts}, scores, [1] + [0] * len(found)


OUTPUT_FORMATS: dict[str, Callable[[Mined], Iterator[_Row]]] = {
    "triplet": _triplets,
    "n-tuple": _tuples,
    "labeled-pair": _labeled_pairs,
    "labeled-list": _labeled_lists,
}
