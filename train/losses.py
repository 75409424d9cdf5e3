"""Losses over embeddings, defined as in sentence-transformers 6.2.

Rows may carry weights: a loss is the weighted mean over rows, and a row of weight 0 changes neither value nor gradient.

Axes: B rows, E embedding dimension; n columns of candidates (positives, negatives) of c rows each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError, shown
from stella_jax.heads import normalize

Distance = Literal["euclidean", "cosine", "manhattan"]
LossName = Literal["triplet", "multiple_negatives_ranking"]

# exp() of it is 0, and 0 times it is 0.
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


def triplet_loss(
    anchor: jax.Array,
    positive: jax.Array,
    negative: jax.Array,
    distance: Distance = "euclidean",
    margin: float = 5.0,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Mean of max(0, d(anchor, positive) - d(anchor, negative) + margin); all (B, E), the distances not squared."""
    return _mean(triplet_terms(anchor, positive, negative, distance, margin), weights)


def triplet_terms(
    anchor: jax.Array, positive: jax.Array, negative: jax.Array, distance: Distance, margin: float
) -> jax.Array:
    """The triplet loss of each row, (B,)."""
    d = DISTANCES[distance]
    return jax.nn.relu(d(anchor, positive) - d(anchor, negative) + margin)


def multiple_negatives_ranking_loss(
    anchor: jax.Array,
    positive: jax.Array,
    negative: jax.Array | None = None,
    scale: float = 20.0,
    symmetric: bool = False,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Mean cross-entropy of each anchor's own positive among all positives and negatives of the batch; all (B, E).

    Over a mesh, the batch is that of all devices.

    Args:
      scale: what cosines are multiplied by.
      symmetric: the normaliser is averaged with that of each positive's own anchor among all anchors.
    """
    return _mean(ranking_terms(anchor, positive, negative, scale, symmetric, weights), weights)


def ranking_terms(
    anchor: jax.Array,
    positive: jax.Array,
    negative: jax.Array | None,
    scale: float,
    symmetric: bool,
    weights: jax.Array | None,
) -> jax.Array:
    """The ranking loss of each row, (B,); rows of weight 0 are no candidates."""
    B = len(anchor)
    blocked = jnp.zeros(B) if weights is None else jnp.where(weights > 0, 0.0, NOT_A_CANDIDATE)
    # Positives and negatives along an axis of their own: joined along B, rows would change devices.
    candidates = normalize(jnp.stack([positive] if negative is None else [positive, negative]))
    scores = scale * jnp.einsum("be,nce->bnc", normalize(anchor), candidates, precision="highest")
    own = jnp.sum(scores[:, 0] * jnp.eye(B), axis=1)
    normaliser = jax.nn.logsumexp(scores + blocked[None, None], axis=(1, 2))
    if symmetric:
        backward = jax.nn.logsumexp(scores[:, 0] + blocked[:, None], axis=0)
        normaliser = (normaliser + backward) / 2
    return normaliser - own


def _mean(terms: jax.Array, weights: jax.Array | None) -> jax.Array:
    return jnp.mean(terms) if weights is None else jnp.sum(terms * weights) / jnp.sum(weights)


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss and its settings.

    Attributes:
      matryoshka_dims: sum the loss over these prefixes of the embeddings, each scaled to unit length; () takes them
        whole, as they are.
    """

    name: LossName = "triplet"
    distance: Distance = "euclidean"
    margin: float = 5.0
    scale: float = 20.0
    symmetric: bool = False
    matryoshka_dims: tuple[int, ...] = ()

    @property
    def row_by_row(self) -> bool:
        """Whether a row's loss depends on that row only, so that a batch may be cut."""
        return self.name == "triplet"

    def terms(self, embeddings: tuple[jax.Array, ...], weights: jax.Array) -> jax.Array:
        """The loss of each row, (B,), of the embeddings (B, E) of each column; `weights` (B,) is 0 for padding.

        Raises:
          StellaError: the columns or dimensions are not ones that this loss can take.
        """
        if not self.matryoshka_dims:
            return self._terms(embeddings, weights)
        prefixes = (self._prefixes(embeddings, dim) for dim in self.matryoshka_dims)
        return sum((self._terms(prefix, weights) for prefix in prefixes), jnp.zeros(len(weights)))

    def _prefixes(self, embeddings: tuple[jax.Array, ...], dim: int) -> tuple[jax.Array, ...]:
        if not 1 <= dim <= (whole := embeddings[0].shape[1]):
            raise StellaError(f"loss.matryoshka_dims holds {dim}; the head that is trained has {whole} numbers.")
        return tuple(normalize(embedding[:, :dim]) for embedding in embeddings)

    def _terms(self, embeddings: tuple[jax.Array, ...], weights: jax.Array) -> jax.Array:
        if self.name == "triplet":
            if len(embeddings) != 3:
                raise StellaError("the triplet loss needs a negative in each row; multiple_negatives_ranking does not.")
            return triplet_terms(*embeddings, self.distance, self.margin)
        if self.name == "multiple_negatives_ranking":
            anchor, positive, *negative = embeddings
            return ranking_terms(
                anchor, positive, negative[0] if negative else None, self.scale, self.symmetric, weights
            )
        raise StellaError(f"loss.name {shown(self.name)} is unknown; triplet and multiple_negatives_ranking are.")
