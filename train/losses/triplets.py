"""The triplet loss and its distances."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError, join_words
from stella_jax.models.heads import normalize
from train.losses.common import NO_COLUMNS, Columns, Embeddings

Distance = Literal["euclidean", "cosine", "manhattan"]


def _euclidean(a: jax.Array, b: jax.Array) -> jax.Array:
    square = jnp.sum((a - b) ** 2, axis=-1)
    apart = square > 0
    # The square root's gradient is infinite at 0; use 0 for the distance's.
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
      distance: d; "euclidean" is not squared, "cosine" is 1 - cosine, "manhattan" the sum of absolute differences.
      margin: see above.

    Returns:
      (B,) float32.

    Raises:
      StellaError: there are not three columns, or the distance is unknown.

    Reference: Hermans et al. 2017, as sentence-transformers' TripletLoss.
    """
    if len(embeddings) < 3:
        raise StellaError("loss triplet: no negatives; add the column or use multiple_negatives_ranking.")
    if len(embeddings) > 3:
        raise StellaError(
            f"loss triplet: {len(embeddings)} columns of texts; pass three, or use multiple_negatives_ranking."
        )
    if distance not in DISTANCES:
        raise StellaError(f"loss triplet: unknown distance {distance!r}; supported: {join_words(DISTANCES)}.")
    anchor, positive, negative = embeddings
    d = DISTANCES[distance]
    return jax.nn.relu(d(anchor, positive) - d(anchor, negative) + margin)
