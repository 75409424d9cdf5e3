"""Fixed shapes for training batches: texts sorted by length, in a few groups of one length each.

A shape such as ((8, 64), (40, 24), (144, 16)) holds batches of 192 texts whose eight longest have up to 64 tokens, the
next forty up to 24, and the others up to 16. A training run compiles one program for each shape that it meets, so there
are at most `MOST_SHAPES`; the last of them holds any batch.
"""

import math
from collections.abc import Sequence

import numpy as np

from stella_jax.batching import bucket_lengths

Shape = tuple[tuple[int, int], ...]  # (texts, tokens) of each group, longest first

MOST_SHAPES = 3
MOST_GROUPS = 4  # each compiles the encoder's forward and backward pass once more

# What fewer groups may cost in padded tokens before another one is worth its compile time.
WORTH_A_GROUP = 1.12

SPARE = 0.02  # of the texts, which a batch that was not looked at may have longer than those that were


def choose_shapes(lengths: np.ndarray, max_length: int, multiple: int = 1, all_seen: bool = False) -> list[Shape]:
    """The shapes for batches like these, from the one with the fewest tokens to the one that holds any batch.

    Args:
      lengths: (batches, texts) tokens of each text.
      max_length: most tokens that a text may have.
      multiple: what divides the texts of each group, such as the number of devices; it divides `texts`.
      all_seen: whether these are all batches that there will be; else room is left for others.
    """
    ordered = -np.sort(-lengths, axis=1)
    typical = ordered[np.argsort(ordered.sum(axis=1))[: math.ceil(0.9 * len(ordered))]]
    shapes = []
    for batches in (typical, ordered):
        longest = batches.max(axis=0)
        if not all_seen:
            spare = math.ceil(SPARE * len(longest))
            longest = longest[np.maximum(np.arange(len(longest)) - spare, 0)]
        shapes.append(group(longest, max_length, multiple))
    # One program less where the second, which holds what the first does, is hardly larger.
    if padded_tokens(shapes[1]) <= 1.05 * padded_tokens(shapes[0]):
        shapes = shapes[1:]
    longest_bucket = bucket_lengths(max_length)[-1]
    return [*dict.fromkeys([*shapes, ((lengths.shape[1], longest_bucket),)])]


def group(longest: np.ndarray, max_length: int, multiple: int = 1) -> Shape:
    """The groups with the fewest tokens that hold texts (n,) of these lengths, descending; few groups if it pays."""
    buckets = bucket_lengths(max_length)
    lengths = np.asarray(buckets)[np.searchsorted(buckets, longest)]
    lengths = lengths.reshape(-1, multiple).max(axis=1)
    options = [_best(lengths, groups, multiple) for groups in range(1, MOST_GROUPS + 1)]
    least = padded_tokens(options[-1])
    return next(shape for shape in options if padded_tokens(shape) <= WORTH_A_GROUP * least)


def padded_tokens(shape: Shape) -> int:
    """Tokens that a batch of this shape is computed with."""
    return sum(texts * tokens for texts, tokens in shape)


def fits(shape: Shape, longest_first: np.ndarray) -> bool:
    """Whether texts of these lengths, descending, fit into a shape."""
    return bool((longest_first <= np.repeat([tokens for _, tokens in shape], [texts for texts, _ in shape])).all())


def _best(lengths: np.ndarray, groups: int, multiple: int) -> Shape:
    """The cheapest cut of descending lengths, one for each `multiple` of texts, into at most so many groups."""
    levels, starts = np.unique(-lengths, return_index=True)
    levels, ends = -levels, [*starts[1:], len(lengths)]
    # best[j]: the cheapest way to hold the first j levels.
    best: list[tuple[int, Shape]] = [(0, ())] + [(np.iinfo(np.int64).max, ())] * len(levels)
    for _ in range(min(groups, len(levels))):
        best = [best[0], *(_extended(best, levels, starts, ends, j, multiple) for j in range(1, len(levels) + 1))]
    return best[-1][1]


def _extended(
    best: Sequence[tuple[int, Shape]],
    levels: np.ndarray,
    starts: np.ndarray,
    ends: Sequence[int],
    j: int,
    multiple: int,
) -> tuple[int, Shape]:
    """One more group than `best` has, ending with level j - 1, if that is cheaper."""
    options = [best[j]]
    for i in range(j):
        cost, shape = best[i]
        if shape or i == 0:
            texts = int(ends[j - 1] - starts[i]) * multiple
            options.append((cost + texts * int(levels[i]), (*shape, (texts, int(levels[i])))))
    return min(options)
