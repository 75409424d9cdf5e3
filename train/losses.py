"""Losses: functions of embeddings and further columns to the loss of each row, as in sentence-transformers 6.2.

A loss takes the embeddings (B, E) of each column of texts (anchor, positive, negatives) and a mapping of further
columns (B, ...), and returns (B,) float32. A training step takes the weighted mean over rows; `columns["weights"]` (B,)
is 1 for a row and 0 for one that only fills the batch, which a loss that compares rows must not count. Without
`columns`, every row counts:

    loss = triplet((anchors, positives, negatives), margin=0.5).mean()

Axes: B rows, E embedding dimension; n columns of candidates (positives, negatives), c rows of each.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError, join_words
from stella_jax.heads import normalize

Embeddings = tuple[jax.Array, ...]
Columns = Mapping[str, jax.Array]
Loss = Callable[[Embeddings, Columns], jax.Array]
Distance = Literal["euclidean", "cosine", "manhattan"]

NO_COLUMNS: Columns = MappingProxyType({})

# A score below all others: its exponential is 0, and 0 times it is 0.
NOT_A_CANDIDATE = -1e30


def _euclidean(a: jax.Array, b: jax.Array) -> jax.Array:
    square = jnp.sum((a - b) ** 2, axis=-1)
    apart = square > 0
    # The root's own gradient at 0 is infinite; that of the distance is taken to be 0.
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)


DISTANCES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "euclidean": _euclidean,
    "cosine": lambda a, b: 1 - jnp.sum(normalize(a) * normalize(b), axis=-1),
    "manhattan": lambda a, b: jnp.sum(jnp.abs(a - b), axis=-1),
}


def triplet(
    embeddings: Embeddings,
    columns: Columns = NO_COLUMNS,
    *,
    distance: Distance = "euclidean",
    margin: float = 5.0,
) -> jax.Array:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin) of each row.

    Args:
      embeddings: anchors, positives and negatives, (B, E) each.
      distance: d; "euclidean" is not squared, "cosine" is 1 - cosine similarity, "manhattan" the sum of differences.

    Returns:
      (B,) float32.

    Raises:
      StellaError: there are not three columns.

    Reference: Hermans et al. 2017, as sentence-transformers' TripletLoss.
    """
    if len(embeddings) != 3:
        raise StellaError("loss triplet: a row needs a negative; add the column or use multiple_negatives_ranking.")
    if distance not in DISTANCES:
        raise StellaError(f"loss triplet: unknown distance {distance!r}; choose {join_words(DISTANCES)}.")
    anchor, positive, negative = embeddings
    d = DISTANCES[distance]
    return jax.nn.relu(d(anchor, positive) - d(anchor, negative) + margin)


def multiple_negatives_ranking(
    embeddings: Embeddings,
    columns: Columns = NO_COLUMNS,
    *,
    scale: float = 20.0,
    symmetric: bool = False,
) -> jax.Array:
    """Cross-entropy of each anchor's own positive among all positives and negatives of the batch, by cosine.

    Over a mesh, the batch is that of all devices.

    Args:
      embeddings: anchors, positives and any number of columns of negatives, (B, E) each.
      columns: rows whose "weights" are 0 are no candidates.
      scale: what cosines are multiplied by.
      symmetric: the log-sum is averaged with that of each positive's own anchor among all anchors.

    Returns:
      (B,) float32.

    Reference: Henderson et al. 2017, as sentence-transformers' MultipleNegativesRankingLoss.
    """
    if len(embeddings) < 2:
        raise StellaError("loss multiple_negatives_ranking: a row needs an anchor and a positive.")
    anchor, *others = embeddings
    B = len(anchor)
    blocked = jnp.where(columns["weights"] > 0, 0.0, NOT_A_CANDIDATE) if "weights" in columns else jnp.zeros(B)
    # Positives and negatives along an axis of their own: joined along B, rows would change devices.
    candidates = normalize(jnp.stack(others))
    scores = scale * jnp.einsum("be,nce->bnc", normalize(anchor), candidates, precision="highest")
    own = jnp.sum(scores[:, 0] * jnp.eye(B), axis=1)
    log_sum = jax.nn.logsumexp(scores + blocked[None, None], axis=(1, 2))
    if symmetric:
        log_sum = (log_sum + jax.nn.logsumexp(scores[:, 0] + blocked[:, None], axis=0)) / 2
    return log_sum - own


def matryoshka(loss: Loss, dims: Sequence[int], weights: Sequence[float] | None = None) -> Loss:
    """The sum of a loss over prefixes of the embeddings, each scaled to unit length.

    Args:
      dims: lengths of the prefixes, each at most E.
      weights: what the loss of each prefix is multiplied by; None is 1 each.

    Raises:
      StellaError: there are no dims, or other weights than dims.

    Reference: Kusupati et al. 2022, as sentence-transformers' MatryoshkaLoss.
    """
    if not dims or (weights and len(weights) != len(dims)):
        raise StellaError(f"matryoshka: {len(dims)} dims and {len(weights or [])} weights; give each dim one weight.")
    return partial(_matryoshka, loss, tuple(dims), tuple(weights or [1.0] * len(dims)))


def _matryoshka(
    loss: Loss, dims: tuple[int, ...], weights: tuple[float, ...], embeddings: Embeddings, columns: Columns = NO_COLUMNS
) -> jax.Array:
    whole = embeddings[0].shape[1]
    if max(dims) > whole:
        raise StellaError(f"loss.matryoshka_dims: {max(dims)} is more than the {whole} numbers of an embedding.")
    prefixes = (tuple(normalize(embedding[:, :dim]) for embedding in embeddings) for dim in dims)
    losses = (weight * loss(prefix, columns) for weight, prefix in zip(weights, prefixes, strict=True))
    return sum(losses, jnp.zeros(len(embeddings[0])))


BUILT_IN: dict[str, Callable[..., jax.Array]] = {
    "triplet": triplet,
    "multiple_negatives_ranking": multiple_negatives_ranking,
}
