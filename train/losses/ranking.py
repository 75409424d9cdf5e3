"""Losses that rank the candidates of a whole batch for each anchor."""

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError
from train.losses.common import NO_COLUMNS, NOT_A_CANDIDATE, Columns, Embeddings, cosines, counted


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
    blocked = jnp.where(counted(columns, B) > 0, 0.0, NOT_A_CANDIDATE)
    scores = scale * cosines(anchor, others)
    own = jnp.sum(scores[:, 0] * jnp.eye(B), axis=1)
    log_sum = jax.nn.logsumexp(scores + blocked[None, None], axis=(1, 2))
    if symmetric:
        log_sum = (log_sum + jax.nn.logsumexp(scores[:, 0] + blocked[:, None], axis=0)) / 2
    return log_sum - own
