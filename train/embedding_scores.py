"""Metrics of embeddings in NumPy: triplet accuracy, correlation with scores, retrieval and reranking.

Definitions and names are those of sentence-transformers' TripletEvaluator, EmbeddingSimilarityEvaluator,
InformationRetrievalEvaluator and RerankingEvaluator.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from stella_jax.similarity import PAIRWISE, similarity, similarity_pairwise

Scores = dict[str, float]
Similarities = dict[str, np.ndarray]  # (n,) by measure

QUERIES = 256  # compared with a block of the corpus at once
BLOCK = 16384  # texts of the corpus

KS = (1, 3, 5, 10)


def triplet_accuracy(anchors: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> Scores:
    """The share of rows whose anchor is strictly nearer to its positive than to its negative, for each measure.

    Args:
      anchors, positives, negatives: (n, dim).

    Returns:
      `cosine_accuracy`, `dot_accuracy`, `euclidean_accuracy`, `manhattan_accuracy`, and the largest as `max_accuracy`.
    """
    return accuracy(pairwise(anchors, positives), pairwise(anchors, negatives))


def accuracy(nearer: Similarities, farther: Similarities) -> Scores:
    """`triplet_accuracy` from similarities of anchors with positives and with negatives."""
    right = {name: nearer[name] > farther[name] for name in nearer}
    scores = {f"{name}_accuracy": float(each.astype(np.float32).mean()) for name, each in right.items()}
    return scores | {"max_accuracy": max(scores.values())}


def pairwise(first: np.ndarray, second: np.ndarray) -> Similarities:
    """Similarities (n,) of row i of `first` with row i of `second`, both (n, dim), for each measure."""
    return {name: similarity_pairwise(name, first, second) for name in sorted(PAIRWISE)}


def sts(first: np.ndarray, second: np.ndarray, gold: Sequence[float] | np.ndarray) -> Scores:
    """Correlation of the row-wise similarity of two (n, dim) with gold scores (n,), for each measure.

    Returns:
      `pearson_<measure>` and `spearman_<measure>`, and the largest of each as `pearson_max` and `spearman_max`.
    """
    return correlation(pairwise(first, second), gold)


def correlation(similarities: Similarities, gold: Sequence[float] | np.ndarray) -> Scores:
    """`sts` from similarities."""
    scores = {}
    for name, found in similarities.items():
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
    """The rank of each value from 1; equal values share their mean rank."""
    _, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[where]


def retrieval(
    queries: np.ndarray,
    corpus: np.ndarray | Iterable[np.ndarray],
    relevant: Sequence[Collection[int]],
    measure: str = "cosine",
    at: Sequence[int] = KS,
    mrr_at: Sequence[int] = (10,),
    ndcg_at: Sequence[int] = (10,),
    map_at: Sequence[int] = (100,),
) -> Scores:
    """Retrieval metrics, averaged over queries; equal scores rank by index in the corpus.

    sentence-transformers ranks equal scores by id: pass the corpus sorted by id for the same numbers.

    Args:
      queries: (q, dim).
      corpus: (c, dim), or an iterable of its blocks, of which one at a time is in memory.
      relevant: of each query, the indices of its relevant texts, at least one.
      measure: the similarity.
      at: cutoffs k of accuracy, precision and recall.
      mrr_at: cutoffs of the mean reciprocal rank.
      ndcg_at: cutoffs of NDCG.
      map_at: cutoffs of the mean average precision.

    Returns:
      `<measure>_accuracy@k`, `_precision@k`, `_recall@k`, `_mrr@k`, `_ndcg@k` and `_map@k` for their cutoffs.
    """
    deepest = max(*at, *mrr_at, *ndcg_at, *map_at)
    wanted = [set(indexes) for indexes in relevant]
    found = ranked_indices(queries, corpus, deepest, measure).tolist()
    hits = np.array([[index in each for index in ranked] for ranked, each in zip(found, wanted, strict=True)], float)
    counts = np.array([len(indexes) for indexes in wanted])
    scores = {}
    for k in at:
        hits_at_k = hits[:, :k].sum(axis=1)
        scores |= {f"accuracy@{k}": hits_at_k > 0, f"precision@{k}": hits_at_k / k, f"recall@{k}": hits_at_k / counts}
    scores |= {f"mrr@{k}": _reciprocal_ranks(hits[:, :k]) for k in mrr_at}
    scores |= {f"ndcg@{k}": _ndcg(hits[:, :k], counts, k) for k in ndcg_at}
    scores |= {f"map@{k}": _average_precision(hits[:, :k], counts, k) for k in map_at}
    return {f"{measure}_{name}": float(values.mean()) for name, values in scores.items()}


def ranked_indices(
    queries: np.ndarray, corpus: np.ndarray | Iterable[np.ndarray], count: int, measure: str = "cosine"
) -> np.ndarray:
    """Indices (q, count) of each query's nearest texts in the corpus, best first, equal scores by index.

    Args:
      queries: (q, dim).
      corpus: as in `retrieval`; if it has fewer than `count` texts, all are returned.
      measure: the similarity.
    """
    scores, indices, start = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 0
    for block in _blocks(corpus):
        parts = []
        for first in range(0, len(queries), QUERIES):
            rows = slice(first, first + QUERIES)
            # Earlier indices come first, so equal scores keep their order.
            near = np.concatenate([scores[rows], similarity(measure, queries[rows], block)], axis=1)
            best = _largest(near, count)
            before = scores.shape[1]
            old = np.take_along_axis(indices[rows], np.minimum(best, before - 1), axis=1) if before else best
            parts.append((np.take_along_axis(near, best, axis=1), np.where(best < before, old, best - before + start)))
        scores, indices = (np.concatenate(part) for part in zip(*parts, strict=True))
        start += len(block)
    return indices


def _blocks(corpus: np.ndarray | Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    if isinstance(corpus, np.ndarray):
        return (corpus[start : start + BLOCK] for start in range(0, len(corpus), BLOCK))
    return corpus


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns (rows, count) of each row's largest values, descending, equal values by column."""
    if scores.shape[1] <= count:
        return np.argsort(-scores, axis=1, kind="stable")
    least = np.partition(scores, -count, axis=1)[:, -count]
    found = np.empty((len(scores), count), np.int64)
    for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
        candidates = np.flatnonzero(values >= bound)
        found[row] = candidates[np.argsort(-values[candidates], kind="stable")[:count]]
    return found


def _reciprocal_ranks(hits: np.ndarray) -> np.ndarray:
    return np.where(hits.any(axis=1), 1 / (hits.argmax(axis=1) + 1), 0.0)


def _ndcg(hits: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    gains = _gains(k)
    ideal = np.cumsum(gains)[np.minimum(counts, k) - 1]
    return hits @ gains[: hits.shape[1]] / ideal


def _gains(k: int) -> np.ndarray:
    return 1 / np.log2(np.arange(k) + 2)


def _average_precision(hits: np.ndarray, counts: np.ndarray, k: int) -> np.ndarray:
    precisions = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return (precisions * hits).sum(axis=1) / np.minimum(counts, k)


def reranking(
    queries: Iterable[tuple[np.ndarray, np.ndarray, int]], at: Sequence[int] = (10,), measure: str = "cosine"
) -> Scores:
    """Reranking metrics, averaged over queries that each rank texts of their own.

    Equal scores share the mean gain of their ranks in ndcg and are one step of the curve in map, as in scikit-learn;
    in mrr, positives come first. sentence-transformers' mrr leaves them in the order of torch.argsort, which is not
    stable.

    Args:
      queries: of each query its embedding (dim,), its texts' embeddings (n, dim), positives first, and the number of
        positives.
      at: cutoffs k.
      measure: the similarity.

    Returns:
      `map`, `mrr@k` and `ndcg@k` for k in `at`.
    """
    found = [_reranked(similarity(measure, query, texts)[0], right, at) for query, texts, right in queries]
    return {name: float(np.mean([scores[name] for scores in found])) for name in found[0]}


def _reranked(scores: np.ndarray, right: int, at: Sequence[int]) -> Scores:
    order = np.argsort(-scores, kind="stable")
    hits = (order < right).astype(float)
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of each run of equal scores
    sizes = np.diff(last, prepend=-1)
    shared = np.repeat(np.diff(np.cumsum(hits)[last], prepend=0) / sizes, sizes)  # hits, spread evenly over their run
    precisions = np.cumsum(hits)[last] / (last + 1)
    found = {"map": float(precisions @ np.diff(np.cumsum(hits)[last], prepend=0) / right)}
    found |= {f"mrr@{k}": float(_reciprocal_ranks(hits[None, :k])[0]) for k in at}
    return found | {f"ndcg@{k}": float(_ndcg(shared[None, :k], np.array([right]), k)[0]) for k in at}
