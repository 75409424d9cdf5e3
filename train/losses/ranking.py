"""Losses that rank the candidates of a whole batch for each anchor."""

from typing import Literal

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError, join_words
from train.losses.common import NO_COLUMNS, NOT_A_CANDIDATE, Columns, Embeddings, column, cosines, counted

MarginStrategy = Literal["absolute", "relative"]
MARGIN_STRATEGIES = ("absolute", "relative")


def multiple_negatives_ranking(
    embeddings: Embeddings,
    columns: Columns = NO_COLUMNS,
    *,
    scale: float = 20.0,
    symmetric: bool = False,
) -> jax.Array:
    """Cross-entropy of each anchor's positive among all positives and negatives of the batch, by scaled cosine.

    Over a mesh, the batch is that of all devices.

    Args:
      embeddings: anchors, positives and any number of columns of negatives, (B, E) each.
      columns: rows whose "weights" are 0 are not candidates.
      scale: factor of the cosines, the inverse temperature.
      symmetric: average with the cross-entropy of each positive's anchor among all anchors.

    Returns:
      (B,) float32.

    Reference: Henderson et al. 2017, as sentence-transformers' MultipleNegativesRankingLoss.
    """
    if len(embeddings) < 2:
        raise StellaError("loss multiple_negatives_ranking: no positives; pass anchors and positives.")
    anchor, *others = embeddings
    B = len(anchor)
    blocked = jnp.where(counted(columns, B) > 0, 0.0, NOT_A_CANDIDATE)
    scores = scale * cosines(anchor, others)
    own = jnp.sum(scores[:, 0] * jnp.eye(B), axis=1)
    log_sum = jax.nn.logsumexp(scores + blocked[None, None], axis=(1, 2))
    if symmetric:
        log_sum = (log_sum + jax.nn.logsumexp(scores[:, 0] + blocked[:, None], axis=0)) / 2
    return log_sum - own


def gist_embed(
    embeddings: Embeddings,
    columns: Columns = NO_COLUMNS,
    *,
    temperature: float = 0.01,
    margin_strategy: MarginStrategy = "absolute",
    margin: float = 0.0,
    contrast_anchors: bool = True,
    contrast_positives: bool = True,
) -> jax.Array:
    """Cross-entropy of each anchor's positive by cosine, without the candidates that a guide takes for positives.

    A candidate is masked if the guide's cosine with it is above that of anchor and positive minus a margin.

    Args:
      embeddings: anchors, positives and any number of columns of negatives, (B, E) each.
      columns: "guide" (B, C, G), the guide's embedding of each text; rows whose "weights" are 0 are not candidates.
      temperature: divisor of the cosines.
      margin_strategy: whether `margin` is absolute, or relative to the guide's cosine of anchor and positive.
      margin: see above.
      contrast_anchors: also use the other anchors as candidates.
      contrast_positives: also compare each positive with the other positives.

    Returns:
      (B,) float32.

    Raises:
      StellaError: there is no positive, a text lacks the guide's embedding, or the strategy is unknown.

    Reference: Solatorio 2024, as sentence-transformers' GISTEmbedLoss, which takes one negative at most.
    """
    if len(embeddings) < 2:
        raise StellaError("loss gist_embed: no positives; pass anchors and positives.")
    if margin_strategy not in MARGIN_STRATEGIES:
        raise StellaError(
            f"loss gist_embed: unknown margin_strategy {margin_strategy!r}; choose {join_words(MARGIN_STRATEGIES)}."
        )
    guide, B, C = column(columns, "guide", "gist_embed"), len(embeddings[0]), len(embeddings)
    if guide.ndim != 3 or guide.shape[1] != C:
        raise StellaError(
            f"loss gist_embed: the column 'guide' has shape {guide.shape[1:]} per row; give a vector for each of its "
            f"{C} texts."
        )

    def scores(vectors: Embeddings) -> jax.Array:
        """Cosines (B, n, c) of anchors with positives, anchors and negatives, and of positives with positives."""
        anchor, positive, *negatives = vectors
        blocks = [cosines(anchor, [positive, *([anchor] if contrast_anchors else []), *negatives])]
        return jnp.concatenate([*blocks, *([cosines(positive, [positive])] if contrast_positives else [])], axis=1)

    found, guided = scores(embeddings), jax.lax.stop_gradient(scores(tuple(jnp.moveaxis(guide, 1, 0))))
    own = jnp.eye(B)
    limit = jnp.sum(guided[:, 0] * own, axis=1)
    limit = limit - (margin if margin_strategy == "absolute" else jnp.abs(limit) * margin)
    false_negative = (guided > limit[:, None, None]).at[:, 0].set((guided[:, 0] > limit[:, None]) & (own == 0))
    masked = false_negative | (counted(columns, B) == 0)[None, None]
    found = found / temperature
    log_sum = jax.nn.logsumexp(jnp.where(masked, NOT_A_CANDIDATE, found), axis=(1, 2))
    return log_sum - jnp.sum(found[:, 0] * own, axis=1)
