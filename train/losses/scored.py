"""Losses against gold or teacher scores."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError, join_words
from stella_jax.models.heads import normalize
from train.losses.common import NO_COLUMNS, NOT_A_CANDIDATE, Columns, Embeddings, column, counted

Similarity = Literal["dot", "cosine"]

SIMILARITIES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "dot": lambda a, b: jnp.sum(a * b, axis=-1),
    "cosine": lambda a, b: jnp.sum(normalize(a) * normalize(b), axis=-1),
}


def cosent(embeddings: Embeddings, columns: Columns = NO_COLUMNS, *, scale: float = 20.0) -> jax.Array:
    """log(1 + sum of exp(scale * (cos_i - cos_j)) over the pairs of rows whose score_i is below score_j).

    It is one number for a batch, returned for every row, so that the mean over rows is that number.

    Args:
      embeddings: both texts of each row, (B, E) each.
      columns: "score" (B,), higher for more similar texts, in any unit; rows whose "weights" are 0 are skipped.
      scale: factor of the cosines.

    Returns:
      (B,) float32.

    Raises:
      StellaError: there are not two columns of texts, or not one score a row.

    Reference: Huang et al. 2024, as sentence-transformers' CoSENTLoss.
    """
    if len(embeddings) != 2:
        raise StellaError(f"loss cosent: {len(embeddings)} columns of texts; pass two, anchor and positive.")
    score, B = column(columns, "score", "cosent"), len(embeddings[0])
    if score.size != B:
        raise StellaError(f"loss cosent: the column 'score' has shape {score.shape[1:]} per row; give one number.")
    score, row = score.reshape(B), counted(columns, B)
    cosine = scale * SIMILARITIES["cosine"](*embeddings)
    below = (score[:, None] < score[None, :]) & (row[:, None] * row[None, :] > 0)
    differences = jnp.where(below, cosine[:, None] - cosine[None, :], NOT_A_CANDIDATE)
    return jnp.broadcast_to(jax.nn.logsumexp(jnp.append(differences, 0.0)), (B,))


def margin_mse(embeddings: Embeddings, columns: Columns = NO_COLUMNS, *, similarity: Similarity = "dot") -> jax.Array:
    """Squared difference between the margin s(anchor, positive) - s(anchor, negative) and the teacher's margin.

    Args:
      embeddings: anchors, positives and n columns of negatives, (B, E) each.
      columns: "score" (B, 1 + n), the teacher's for the positive and each negative; or its margins (B, n), or (B,) for
        a single negative.
      similarity: s.

    Returns:
      (B,) float32, the mean over negatives.

    Raises:
      StellaError: there is no negative, or the number of scores is wrong.

    Reference: Hofstaetter et al. 2020, as sentence-transformers' MarginMSELoss.
    """
    student = _similarities(embeddings, similarity, "margin_mse")
    B, n = len(student), student.shape[1] - 1
    score = column(columns, "score", "margin_mse")
    score = score[:, None] if score.ndim == 1 else score
    if score.shape == (B, n + 1):
        score = score[:, :1] - score[:, 1:]
    if score.shape != (B, n):
        raise StellaError(
            f"loss margin_mse: the column 'score' has rows of length {score.shape[1]}; give the scores of the positive "
            f"and each negative (length {n + 1}), or the margin of each negative (length {n})."
        )
    return jnp.mean((student[:, :1] - student[:, 1:] - score) ** 2, axis=1)


def kl_distillation(
    embeddings: Embeddings,
    columns: Columns = NO_COLUMNS,
    *,
    similarity: Similarity = "dot",
    temperature: float = 1.0,
) -> jax.Array:
    """temperature^2 * KL(teacher || student) of the softmax of scores / temperature over a row's candidates.

    Args:
      embeddings: anchors and n columns of candidates, (B, E) each.
      columns: "score" (B, n), the teacher's for each candidate.
      similarity: of the student.
      temperature: see above.

    Returns:
      (B,) float32.

    Raises:
      StellaError: there are fewer than two candidates, or the number of scores is wrong.

    Reference: Lin et al. 2020, as sentence-transformers' DistillKLDivLoss.
    """
    student = _similarities(embeddings, similarity, "kl_distillation")
    score = column(columns, "score", "kl_distillation")
    if score.shape != student.shape:
        raise StellaError(
            f"loss kl_distillation: the column 'score' has shape {score.shape[1:]} per row; give {student.shape[1]} "
            "numbers, one for each positive and negative."
        )
    expected = jax.nn.log_softmax(score / temperature, axis=1)
    found = jax.nn.log_softmax(student / temperature, axis=1)
    return temperature**2 * jnp.sum(jnp.exp(expected) * (expected - found), axis=1)


def _similarities(embeddings: Embeddings, name: str, loss: str) -> jax.Array:
    """Similarities (B, n) of each anchor with its own candidates."""
    if name not in SIMILARITIES:
        raise StellaError(f"loss {loss}: unknown similarity {name!r}; supported: {join_words(SIMILARITIES)}.")
    anchor, *candidates = embeddings
    if len(candidates) < 2:
        raise StellaError(f"loss {loss}: no negatives; add the column negative.")
    return jnp.stack([SIMILARITIES[name](anchor, candidate) for candidate in candidates], axis=1)
