"""Token counts -> batches of a few fixed shapes.

Every text goes to the shortest length ("bucket") that holds it, and a bucket always has the same number of rows, so the
shape that a text is computed at depends on its own length only. That is what keeps its bits free of its neighbours.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# (up to this length, in steps of): 32 lengths to 512, then four to each doubling.
STEPS = ((128, 8), (256, 16), (512, 32), (1024, 128), (2048, 256), (4096, 512), (8192, 1024))


@dataclass(frozen=True, slots=True)
class Batch:
    """`rows` x `length` tokens on the device; `indices` are the texts in it, at most `rows`."""

    length: int
    rows: int
    indices: tuple[int, ...]


def bucket_lengths(longest: int) -> list[int]:
    """The fixed lengths, ascending, as many as it takes to hold `longest` tokens."""
    lengths, low = [], 0
    for high, step in STEPS:
        lengths += range(low + step, high + 1, step)
        low = high
    while lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    return lengths[: bisect_left(lengths, longest) + 1]


def plan_batches(
    counts: Sequence[int], lengths: Sequence[int], token_budget: int, max_rows: int | None = None, devices: int = 1
) -> list[Batch]:
    """Batches for texts of these token counts, longest first (memory runs out at once or never).

    Args:
      counts: tokens per text, each at most `lengths[-1]`.
      lengths: ascending, from `bucket_lengths`.
      token_budget: tokens of a batch on one device; a bucket has as many rows as fit, at least one.
      max_rows: most rows of any bucket on one device, where that is less.
      devices: how many share each batch.
    """
    buckets = np.searchsorted(np.asarray(lengths), np.asarray(counts, dtype=np.int64))
    batches = []
    for bucket in np.unique(buckets)[::-1]:
        length = int(lengths[bucket])
        rows = devices * rows_of(length, token_budget, max_rows)
        members = np.flatnonzero(buckets == bucket).tolist()
        batches += [Batch(length, rows, tuple(members[i : i + rows])) for i in range(0, len(members), rows)]
    return batches


def rows_of(length: int, token_budget: int, max_rows: int | None = None) -> int:
    """Rows of the bucket of this length on one device."""
    return max(1, min(token_budget // length, max_rows or token_budget))


def pad(token_ids: Sequence[Sequence[int]], batch: Batch, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids (rows, length) and lengths (rows,) of a batch, int32; rows without a text are one padding token long."""
    ids = np.full((batch.rows, batch.length), pad_id, dtype=np.int32)
    lengths = np.ones(batch.rows, dtype=np.int32)
    for row, index in enumerate(batch.indices):
        tokens = token_ids[index]
        ids[row, : len(tokens)] = tokens
        lengths[row] = len(tokens)
    return ids, lengths
