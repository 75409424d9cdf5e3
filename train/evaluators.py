"""How good embeddings are: triplet accuracy, correlation with scores, retrieval; numpy alone.

Definitions and names are those of sentence-transformers' TripletEvaluator, EmbeddingSimilarityEvaluator and
InformationRetrievalEvaluator.
"""

from collections.abc import Collection, Sequence

import numpy as np

from stella_jax.similarity import PAIRWISE, similarity, similarity_pairwise

Scores = dict[str, float]

CHUNK = 256  # queries whose similarities with the whole corpus are in memory at once


def triplet_accuracy(anchors: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> Scores:
    """The share of rows whose anchor is strictly nearer to its positive than to its negative, by each measure.

    Args:
      anchors, positives, negatives: (n, dim).

    Returns:
      `cosine_accuracy`, `dot_accuracy`, `euclidean_accuracy`, `manhattan_accuracy`, and the largest as `max_accuracy`.
    """
    scores = {}
    for name in sorted(PAIRWISE):
        nearer = similarity_pairwise(name, anchors, positives) > similarity_pairwise(name, anchors, negatives)
        scores[f"{name}_accuracy"] = float(nearer.astype(np.float32).mean())
    return scores | {"max_accuracy": max(scores.values())}


def sts(first: np.ndarray, second: np.ndarray, gold: Sequence[float]) -> Scores:
    """Correlation of the similarity of two (n, dim) with gold scores, by each measure.

    Returns:
      `pearson_<measure>` and `spearman_<measure>`, and the largest of each as `pearson_max` and `spearman_max`.
    """
    scores = {}
    for name in sorted(PAIRWISE):
        found = similarity_pairwise(name, first, second)
        scores[f"pearson_{name}"] = pearson(gold, found)
        scores[f"spearman_{name}"] = pearson(ranks(gold), ranks(found))
    for kind in ("pearson", "spearman"):
        scores[f"{kind}_max"] = max(value for name, value in scores.items() if name.startswith(kind))
    return scores


def pearson(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Pearson's r; NaN where one side is constant."""
    x, y = (np.asarray(v, np.float64) - np.mean(v, dtype=np.float64) for v in (x, y))
    spread = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.clip(x @ y / spread, -1, 1)) if spread else float("nan")


def ranks(x: Sequence[float] | np.ndarray) -> np.ndarray:
    """The rank of each value from 1; equal ones share the mean of theirs."""
    _, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[where]


def retrieval(
    queries: np.ndarray,
    corpus: np.ndarray,
    relevant: Sequence[Collection[int]],
    measure: str = "cosine",
    recall_at: Sequence[int] = (1, 3, 5, 10),
    best_at: int = 10,
    map_at: int = 100,
) -> Scores:
    """How far up the relevant texts come when each query ranks the corpus; equal scores rank by place in the corpus.

    Args:
      queries, corpus: (q, dim) and (c, dim).
      relevant: of each query, which of the corpus, at least one.

    Returns:
      `<measure>_accuracy@k`, `_precision@k` and `_recall@k` for k in `recall_at`, `_mrr@k` and `_ndcg@k` for `best_at`,
      `_map@k` for `map_at`.
    """
    deepest = min(max(*recall_at, best_at, map_at), len(corpus))
    wanted = [set(indexes) for indexes in relevant]
    hits = np.zeros((len(queries), deepest))
    for start in range(0, len(queries), CHUNK):
        order = np.argsort(-similarity(measure, queries[start : start + CHUNK], corpus), axis=1, kind="stable")
        for row, ranked in enumerate(order[:, :deepest].tolist(), start):
            hits[row] = [index in wanted[row] for index in ranked]
    counts = np.array([len(indexes) for indexes in wanted])
    found = {}
    for k in recall_at:
        hits_at_k = hits[:, :k].sum(axis=1)
        found |= {f"accuracy@{k}": (hits_at_k > 0).mean(), f"precision@{k}": (hits_at_k / k).mean()}
        found[f"recall@{k}"] = (hits_at_k / counts).mean()
    found[f"mrr@{best_at}"] = _reciprocal_ranks(hits[:, :best_at]).mean()
    found[f"ndcg@{best_at}"] = _ndcg(hits[:, :best_at], counts, best_at).mean()
    found[f"map@{map_at}"] = _average_precision(hits[:, :map_at], counts, map_at).mean()
    return {f"{measure}_{name}": float(value) for name, value in found.items()}


def _reciprocal_ranks(hits: np.ndarray) -> np.ndarray:
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def _ndcg(hits: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    gains = 1 / np.log2(np.arange(k) + 2)
    ideal = np.cumsum(gains)[np.minimum(counts, k) - 1]
    return hits @ gains[: hits.shape[1]] / ideal


def _average_precision(hits: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    precisions = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return (precisions * hits).sum(axis=1) / np.minimum(counts, k)
