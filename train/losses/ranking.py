"""Losses that rank the candidates of a whole batch for each anchor."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError, join_words
from train.losses.common import NO_COLUMNS, NOT_A_CANDIDATE, Columns, Embeddings, column, cosines, counted

MarginStrategy = Literal["absolute", "relative"]
MARGIN_STRATEGIES = ("absolute", "relative")

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
PartitionMode = Literal["joint", "per_direction"]
PARTITION_MODES = ("joint", "per_direction")
HardnessMode = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]
HARDNESS_MODES = ("in_batch_negatives", "hard_negatives", "all_negatives")


def multiple_negatives_ranking(
    embeddings: Embeddings,
    columns: Columns = NO_COLUMNS,
    *,
    scale: float = 20.0,
    directions: Sequence[Direction] = ("query_to_doc",),
    partition_mode: PartitionMode = "joint",
    hardness_mode: HardnessMode | None = None,
    hardness_strength: float = 0.0,
) -> jax.Array:
    """Cross-entropy of each anchor's positive among the candidates of the batch, by scaled cosine.

    Queries are the anchors, documents the positives and negatives. The candidates are those of all directions:
    query_to_doc has all documents for a query, query_to_query all other queries, doc_to_query all queries for its
    positive, doc_to_doc all documents of other queries for its positive. Over a mesh, the batch of all devices counts.

    Args:
      embeddings: anchors, positives and any number of columns of negatives, (B, E) each.
      columns: rows whose "weights" are 0 are not candidates.
      scale: factor of the cosines, the inverse temperature.
      directions: query_to_doc and any others.
      partition_mode: joint, one softmax over the candidates of all directions; or per_direction, the mean of one for
        query_to_doc and one for doc_to_query.
      hardness_mode: adds hardness_strength * cosine, without its gradient, to the scores in query_to_doc of
        in_batch_negatives (documents of other queries), hard_negatives (the query's own negatives) or all_negatives.
      hardness_strength: see above.

    Returns:
      (B,) float32.

    Raises:
      StellaError: there is no positive, or an argument is unknown or does not go with another.

    Reference: Henderson et al. 2017; Li et al. 2023 (directions); Lan et al. 2025 (hardness); as sentence-transformers'
    MultipleNegativesRankingLoss.
    """
    _check_ranking(len(embeddings), directions, partition_mode, hardness_mode, hardness_strength)
    anchor, *documents = embeddings
    is_own = jnp.eye(len(anchor), dtype=bool)[:, None]
    blocked = jnp.where(counted(columns, len(anchor)) > 0, 0.0, NOT_A_CANDIDATE)[None, None]
    cosine = cosines(anchor, documents)
    scores = scale * cosine
    if hardness_mode:
        is_positive = is_own & (jnp.arange(len(documents)) == 0)[None, :, None]
        harder = {"in_batch_negatives": ~is_own, "hard_negatives": is_own & ~is_positive, "all_negatives": ~is_positive}
        penalty = hardness_strength * jax.lax.stop_gradient(cosine)
        scores += jnp.where(harder[hardness_mode], penalty, 0.0)
    found = [scores]
    if "query_to_query" in directions:
        found += [jnp.where(is_own, NOT_A_CANDIDATE, scale * cosines(anchor, [anchor]))]
    if "doc_to_query" in directions:
        found += [scale * cosines(documents[0], [anchor])]
    if "doc_to_doc" in directions:
        found += [jnp.where(is_own, NOT_A_CANDIDATE, scale * cosines(documents[0], documents))]
    found = [jnp.concatenate(found, axis=1)] if partition_mode == "joint" else found
    log_sums = [jax.nn.logsumexp(each + blocked, axis=(1, 2)) for each in found]
    return sum(log_sums[1:], log_sums[0]) / len(log_sums) - jnp.sum(scores[:, 0] * is_own[:, 0], axis=1)


def _check_ranking(
    num_texts: int, directions: Sequence[str], partition_mode: str, hardness_mode: str | None, strength: float
) -> None:
    given = {
        "direction": (directions, DIRECTIONS),
        "partition_mode": ([partition_mode], PARTITION_MODES),
        "hardness_mode": ([] if hardness_mode is None else [hardness_mode], HARDNESS_MODES),
    }
    unknown = [
        (name, value, known) for name, (values, known) in given.items() for value in values if value not in known
    ]
    if num_texts < 2:
        problem = "no positives; pass anchors and positives"
    elif unknown:
        name, value, known = unknown[0]
        problem = f"unknown {name} {value!r}; supported: {join_words(known)}"
    elif "query_to_doc" not in directions:
        problem = "directions lack 'query_to_doc', the only one with the positives; add it"
    elif partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & {*directions}:
        problem = "partition_mode 'per_direction' excludes query_to_query and doc_to_doc; use 'joint'"
    elif not (strength > 0 if hardness_mode else strength == 0):
        problem = "hardness_strength must be above 0 with a hardness_mode, and 0 without; change one of them"
    else:
        return
    raise StellaError(f"loss multiple_negatives_ranking: {problem}.")


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

    A candidate is masked if its cosine by the guide exceeds the cosine of anchor and positive minus a margin.

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
            f"loss gist_embed: unknown margin_strategy {margin_strategy!r}; supported: {join_words(MARGIN_STRATEGIES)}."
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
