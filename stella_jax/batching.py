"""Token counts -> batches of a few fixed shapes.

Every text goes to the shortest length ("bucket") that holds it, and a bucket always has the same number of rows. The
shape that a text is computed at therefore depends on its own length only, so its bits do not depend on its neighbors.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# (up to this length, in steps of): 32 lengths up to 512, then four per doubling.
STEPS = ((128, 8), (256, 16), (512, 32), (1024, 128), (2048, 256), (4096, 512), (8192, 1024))


@dataclass(frozen=True, slots=True)
class Batch:
    """`rows` x `length` tokens on the device, of which `tokens` belong to texts.

    Attributes:
      texts: at most `rows`, each as (group, index in the group).
    """

    length: int
    rows: int
    texts: tuple[tuple[int, int], ...]
    tokens: int


def bucket_lengths(max_length: int) -> list[int]:
    """The fixed lengths, ascending, up to the first that holds `max_length` tokens."""
    lengths, low = [], 0
    for high, step in STEPS:
        lengths += range(low + step, high + 1, step)
        low = high
    while lengths[-1] < max_length:
        lengths.append(2 * lengths[-1])
    return lengths[: bisect_left(lengths, max_length) + 1]


def rows_of(length: int, token_budget: int, max_batch_rows: int | None = None) -> int:
    """Number of rows of the bucket of this length on one device."""
    return max(1, min(token_budget // length, max_batch_rows or token_budget))


class Packer:
    """Packs the texts of one group after another into batches.

    The last texts of a group wait for the next group's, bucket by bucket, so that only the very last batches are short.

    Args:
      max_length: maximum number of tokens of a text.
      token_budget: tokens of a batch on one device; a bucket has as many rows as fit, at least one.
      max_batch_rows: maximum number of rows of a bucket on one device.
      devices: number of devices that share each batch.
    """

    def __init__(self, max_length: int, token_budget: int, max_batch_rows: int | None = None, devices: int = 1):
        self._lengths = bucket_lengths(max_length)
        self._rows = [devices * rows_of(length, token_budget, max_batch_rows) for length in self._lengths]
        # For each bucket: (group, index in the group, tokens).
        self._waiting: list[list[tuple[int, int, int]]] = [[] for _ in self._lengths]

    def shapes(self, counts: Sequence[int]) -> list[tuple[int, int]]:
        """(rows, length) of the batches that texts of these token counts go to, longest first."""
        buckets = np.unique(np.searchsorted(self._lengths, np.asarray(counts, dtype=np.int64)))[::-1]
        return [(self._rows[bucket], self._lengths[bucket]) for bucket in buckets.tolist()]

    def add(self, group: int, counts: Sequence[int]) -> Iterator[Batch]:
        """Adds the texts of a group, by their token counts; yields full batches, the longest first.

        If memory is too small, that shows at the first batch.
        """
        buckets = np.searchsorted(self._lengths, np.asarray(counts, dtype=np.int64))
        for bucket in np.unique(buckets)[::-1]:
            waiting = self._waiting[bucket]
            waiting += [(group, i, int(counts[i])) for i in np.flatnonzero(buckets == bucket).tolist()]
            full = len(waiting) - len(waiting) % self._rows[bucket]
            yield from self._batches(bucket, full)

    def flush(self, last: int) -> Iterator[Batch]:
        """Yields batches of all waiting texts of the groups up to `last`, filled up with texts of later groups."""
        for bucket in reversed(range(len(self._lengths))):
            if self._waiting[bucket] and self._waiting[bucket][0][0] <= last:
                yield from self._batches(bucket, len(self._waiting[bucket]))

    def _batches(self, bucket: int, count: int) -> Iterator[Batch]:
        """Packs the first `count` waiting texts of a bucket."""
        taken, self._waiting[bucket] = self._waiting[bucket][:count], self._waiting[bucket][count:]
        rows = self._rows[bucket]
        for i in range(0, count, rows):
            texts = taken[i : i + rows]
            yield Batch(self._lengths[bucket], rows, tuple(text[:2] for text in texts), sum(text[2] for text in texts))


def pad(token_ids: Sequence[Sequence[int]], batch: Batch, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (rows, length) and lengths (rows,) of a batch, int32.

    Rows without a text hold one padding token.
    """
    ids = np.full((batch.rows, batch.length), pad_id, dtype=np.int32)
    lengths = np.ones(batch.rows, dtype=np.int32)
    for row, tokens in enumerate(token_ids):
        ids[row, : len(tokens)] = tokens
        lengths[row] = len(tokens)
    return ids, lengths
