"""Exact nearest rows by inner product, block by block on the device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Maximum queries and corpus rows of one matrix product (128 MiB of scores), and maximum numbers in those rows.
MAX_QUERIES = 512
MAX_BLOCK_ROWS = 65_536
MAX_BLOCK_NUMBERS = 2**26
UNIT = 1024  # the rows of a block are a multiple of this, for groups of equal size


def nearest(
    queries: np.ndarray, corpus: np.ndarray, k: int, on_block: Callable[[int], Any] = lambda count: None
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of the corpus with the largest inner product with each query, the largest first.

    Equal rows keep the order of the corpus. The queries, their results and two blocks of the corpus are in memory at a
    time; the corpus can be a memory map.

    Args:
      queries: (q, E) float32.
      corpus: (n, E) float32.
      k: number of rows per query, at least 1.
      on_block: called with the number of new products after each step; they add up to q * n.

    Returns:
      Products (q, k) float32 and row numbers (q, k) int32; if the corpus has fewer than k rows, -inf and -1 at the end.
    """
    width = max(_block(*corpus.shape), -(-k // UNIT) * UNIT)
    blocks = [
        jnp.asarray(_filled(queries[i : i + MAX_QUERIES], MAX_QUERIES)) for i in range(0, len(queries), MAX_QUERIES)
    ]
    best = [(jnp.full((MAX_QUERIES, k), -jnp.inf), jnp.full((MAX_QUERIES, k), -1, jnp.int32)) for _ in blocks]
    for start in range(0, len(corpus), width):
        rows = corpus[start : start + width]
        block = jnp.asarray(_filled(rows, width))
        for i, query in enumerate(blocks):
            best[i] = _merge(*best[i], query, block, start, len(rows))
            on_block(min(MAX_QUERIES, len(queries) - i * MAX_QUERIES) * len(rows))
    if not blocks:
        return np.empty((0, k), np.float32), np.empty((0, k), np.int32)
    scores, numbers = (np.concatenate(arrays)[: len(queries)] for arrays in zip(*best, strict=True))
    return scores, numbers


@partial(jax.jit, donate_argnums=(0, 1))
def _merge(
    scores: jax.Array, numbers: jax.Array, queries: jax.Array, rows: jax.Array, start: int, count: int
) -> tuple[jax.Array, jax.Array]:
    """Merges the best rows so far with a block's first `count` rows, whose numbers begin at `start`."""
    products = jnp.einsum("qe,ne->qn", queries, rows, precision=jax.lax.Precision.HIGHEST)
    found, places = _top(products, min(scores.shape[1], len(rows)), count)
    places = jnp.where(found == -jnp.inf, -1, places + start)
    # Earlier rows come first, since top_k prefers the first of equal values.
    scores, order = jax.lax.top_k(jnp.concatenate([scores, found], axis=1), scores.shape[1])
    return scores, jnp.take_along_axis(jnp.concatenate([numbers, places], axis=1), order, axis=1)


def _top(values: jax.Array, k: int, count: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of the first `count` values of each row (q, n).

    For a large n in two steps: the k largest values are all in the k groups of neighbors with the largest maxima, and
    the first of equal values in the first of equal groups. Values from `count` on are masked in each step, which costs
    less than masking all values first.
    """
    queries, n = values.shape
    size = 1
    while 4 * size * size * k <= n and n % (2 * size) == 0:  # neither step has many values
        size *= 2
    maxima = values.reshape(queries, n // size, size).max(axis=2)
    _, groups = jax.lax.top_k(jnp.where(jnp.arange(0, n, size)[None] < count, maxima, -jnp.inf), k)
    groups = jnp.sort(groups, axis=1)
    places = (groups[:, :, None] * size + jnp.arange(size)[None, None]).reshape(queries, k * size)
    members = jnp.where(places < count, jnp.take_along_axis(values, places, axis=1), -jnp.inf)
    found, order = jax.lax.top_k(members, k)
    return found, jnp.take_along_axis(places, order, axis=1)


def _block(rows: int, dim: int) -> int:
    """Rows per block: the maximum, but about equal in all blocks and a multiple of UNIT."""
    blocks = max(1, -(-rows // min(MAX_BLOCK_ROWS, MAX_BLOCK_NUMBERS // dim)))
    return max(1, -(-rows // (blocks * UNIT))) * UNIT


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """The rows, at least one, padded to `count` with copies of the last one."""
    return np.pad(rows, ((0, count - len(rows)), (0, 0)), mode="edge")
