"""Fixed shapes for training batches: texts sorted by length, in a few groups padded to one length each.

A shape such as ((8, 64), (40, 24), (144, 16)) fits batches of 192 texts whose eight longest have up to 64 tokens, the
next forty up to 24, and the others up to 16. Each shape is compiled once, so there are at most `MAX_SHAPES`; the last
one fits any batch.
"""

import math
from collections.abc import Sequence

import numpy as np

from stella_jax.batching import bucket_lengths

Shape = tuple[tuple[int, int], ...]  # (texts, tokens) of each group, longest first

MAX_SHAPES = 3
MAX_GROUPS = 4  # each compiles the encoder's forward and backward pass once more

# Another group is worth its compile time if without it there would be more padded tokens by this factor.
WORTH_A_GROUP = 1.12

SPARE = 0.02  # share of texts that may be longer in other batches than in the sampled ones


def choose_shapes(lengths: np.ndarray, max_length: int, multiple: int = 1, all_seen: bool = False) -> list[Shape]:
    """Chooses shapes for batches like these, from the one with the fewest tokens to one that fits any batch.

    Args:
      lengths: (batches, texts) tokens of each text.
      max_length: maximum number of tokens of a text.
      multiple: a divisor of `texts`; the texts of each group are a multiple of it, such as the number of devices.
      all_seen: whether no other batches will come; else some room is left for them.
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
    # Drop the first shape if the second, which fits the same batches, is hardly larger.
    if padded_tokens(shapes[1]) <= 1.05 * padded_tokens(shapes[0]):
        shapes = shapes[1:]
    longest_bucket = bucket_lengths(max_length)[-1]
    return [*dict.fromkeys([*shapes, ((lengths.shape[1], longest_bucket),)])]


def group(longest: np.ndarray, max_length: int, multiple: int = 1) -> Shape:
    """Groups for texts of these lengths (n,), descending, that balance padding against the number of groups."""
    buckets = bucket_lengths(max_length)
    lengths = np.asarray(buckets)[np.searchsorted(buckets, longest)]
    lengths = lengths.reshape(-1, multiple).max(axis=1)
    options = [_best(lengths, groups, multiple) for groups in range(1, MAX_GROUPS + 1)]
    least = padded_tokens(options[-1])
    return next(shape for shape in options if padded_tokens(shape) <= WORTH_A_GROUP * least)


def padded_tokens(shape: Shape) -> int:
    """Tokens of a batch of this shape, padding included."""
    return sum(texts * tokens for texts, tokens in shape)


def fits(shape: Shape, longest_first: np.ndarray) -> bool:
    """Whether texts of these lengths, descending, fit into a shape."""
    return bool((longest_first <= np.repeat([tokens for _, tokens in shape], [texts for texts, _ in shape])).all())


def _best(lengths: np.ndarray, groups: int, multiple: int) -> Shape:
    """The split of descending lengths, one for each `multiple` texts, into at most `groups` with the fewest tokens."""
    levels, starts = np.unique(-lengths, return_index=True)
    levels, ends = -levels, [*starts[1:], len(lengths)]
    # best[j]: cost and groups of the cheapest split of the first j levels.
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
    """best[j] with one more group allowed, which ends with level j - 1."""
    options = [best[j]]
    for i in range(j):
        cost, shape = best[i]
        if shape or i == 0:
            texts = int(ends[j - 1] - starts[i]) * multiple
            options.append((cost + texts * int(levels[i]), (*shape, (texts, int(levels[i])))))
    return min(options)
