"""Scores of embeddings: small cases by hand, and all of it against sentence-transformers."""

import numpy as np
import pytest

from train import embedding_scores
from train.embedding_scores import ranked_indices, ranks, reranking, retrieval, sts, triplet_accuracy

MEASURES = ("cosine", "dot", "euclidean", "manhattan")


def embeddings(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rows of many lengths, some of them equal to others, rounded so that there are ties."""
    rows = np.round(rng.normal(size=(count, 6)) * rng.uniform(0.5, 3, size=(count, 1)), 1).astype(np.float32)
    rows[count // 2] = rows[0]
    return rows


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_a_tie_is_not_a_success():
    a = np.eye(2, dtype=np.float32)
    assert triplet_accuracy(a, a, a) == {f"{name}_accuracy": 0.0 for name in (*MEASURES, "max")}


def test_measures_differ():
    anchor, far, near = (np.array([x], np.float32) for x in ([1, 0], [9, 1], [1, 1]))
    found = triplet_accuracy(anchor, far, near)
    assert (found["cosine_accuracy"], found["dot_accuracy"], found["euclidean_accuracy"]) == (1, 1, 0)
    assert found["max_accuracy"] == 1


def test_accuracy_is_a_float32_mean():
    a = np.ones((11, 1), np.float32)
    positive = np.where(np.arange(11) < 7, 2, 0)[:, None].astype(np.float32)
    assert triplet_accuracy(a, positive, a)["dot_accuracy"] == float(np.float32(7) / np.float32(11))


def test_ranks_share_their_mean():
    np.testing.assert_array_equal(ranks([3, 1, 3, 2, 3]), [4, 1, 4, 2, 4])


def test_correlation_with_itself_is_one_and_with_a_constant_nothing(rng):
    a, b = embeddings(rng, 20), embeddings(rng, 20)
    gold = -np.linalg.norm(a - b, axis=1)
    assert sts(a, b, gold)["spearman_euclidean"] == pytest.approx(1)
    assert sts(a, b, gold)["pearson_max"] == pytest.approx(1)
    assert np.isnan(sts(a, b, [1.0] * 20)["pearson_cosine"])


def test_retrieval_by_hand():
    corpus = np.diag(np.arange(1, 5, dtype=np.float32))
    queries = np.array([[0, 3, 2, 1], [1, 0, 0, 0]], np.float32)  # ranks 1 2 3 0, and 0 then ties in order
    found = retrieval(queries, corpus, [{2, 0}, {2}], at=(1, 2, 10))
    assert found["cosine_accuracy@1"] == 0
    assert found["cosine_accuracy@2"] == 0.5
    assert found["cosine_recall@2"] == pytest.approx(np.mean([1 / 2, 0]))
    assert found["cosine_precision@10"] == pytest.approx(np.mean([2 / 10, 1 / 10]))
    assert found["cosine_mrr@10"] == pytest.approx(np.mean([1 / 2, 1 / 3]))
    first = (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3))
    assert found["cosine_ndcg@10"] == pytest.approx(np.mean([first, 1 / np.log2(4)]))
    assert found["cosine_map@100"] == pytest.approx(np.mean([(1 / 2 + 2 / 4) / 2, 1 / 3]))


class Model:
    """What sentence-transformers' evaluators ask of a model: texts are numbers of rows."""

    def __init__(self, rows: np.ndarray, measure: str = "cosine"):
        self.rows = rows
        self.similarity_fn_name = measure

    def encode(self, texts, **_):
        import torch

        found = self.rows[[int(text) for text in texts]]
        return found if _.get("convert_to_numpy") else torch.tensor(found)

    encode_query = encode_document = encode


@pytest.fixture
def quiet(monkeypatch):
    """Their results go to a model card that this model has not."""
    from sentence_transformers.base.evaluation import evaluator

    for name in ("store_metrics_in_model_card_data", "prefix_name_to_metrics"):
        monkeypatch.setattr(evaluator.BaseEvaluator, name, lambda self, first, *rest: first)


@pytest.mark.torch
def test_triplets_as_in_sentence_transformers(rng, quiet):
    from sentence_transformers.sentence_transformer.evaluation import TripletEvaluator

    rows = embeddings(rng, 300)
    a, p, n = (list(map(str, rng.integers(0, 300, 200))) for _ in range(3))
    theirs = TripletEvaluator(a, p, n, similarity_fn_names=list(MEASURES), write_csv=False)(Model(rows))  # pyright: ignore
    assert triplet_accuracy(*(rows[np.array(x, int)] for x in (a, p, n))) == theirs


@pytest.mark.torch
def test_sts_as_in_sentence_transformers(rng, quiet):
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    rows = rng.normal(size=(100, 6)).astype(np.float32)  # without ties, which rounding would decide
    a, b = (list(map(str, rng.integers(0, 100, 80))) for _ in range(2))
    gold = list(np.round(rng.uniform(0, 5, 80)))
    evaluator = EmbeddingSimilarityEvaluator(a, b, gold, similarity_fn_names=list(MEASURES), write_csv=False)
    theirs = evaluator(Model(rows))  # pyright: ignore
    ours = sts(rows[np.array(a, int)], rows[np.array(b, int)], gold)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.torch
@pytest.mark.parametrize(
    ("measure", "ties"),  # of cosine and euclidean, rounding decides ties
    [("cosine", False), ("dot", False), ("dot", True), ("euclidean", False), ("manhattan", False), ("manhattan", True)],
)
def test_retrieval_as_in_sentence_transformers(rng, quiet, measure, ties, monkeypatch):
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    monkeypatch.setattr(embedding_scores, "BLOCK", 40)

    def rows(count: int) -> np.ndarray:
        return (rng.integers(-2, 3, (count, 3)) if ties else rng.normal(size=(count, 6))).astype(np.float32)

    queries, corpus = rows(40), rows(150)
    cutoffs = [1, 4, 30, 200]
    relevant = [set(rng.choice(150, size=rng.integers(1, 15), replace=False).tolist()) for _ in queries]
    evaluator = InformationRetrievalEvaluator(
        {f"q{i}": str(i) for i in range(40)},
        {f"d{i:03}": str(40 + i) for i in range(150)},
        {f"q{i}": {f"d{j:03}" for j in found} for i, found in enumerate(relevant)},
        accuracy_at_k=cutoffs,
        precision_recall_at_k=cutoffs,
        mrr_at_k=cutoffs,
        ndcg_at_k=cutoffs,
        map_at_k=cutoffs,
        corpus_chunk_size=70,
        write_csv=False,
        main_score_function=None,
    )
    model = Model(np.concatenate([queries, corpus]), measure)
    model.similarity = _their_similarity(measure)  # pyright: ignore
    theirs = evaluator(model)  # pyright: ignore
    ours = retrieval(queries, corpus, relevant, measure, cutoffs, cutoffs, cutoffs, cutoffs)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


def _their_similarity(measure: str):
    from sentence_transformers.util import similarity

    return {
        "cosine": similarity.cos_sim,
        "dot": similarity.dot_score,
        "euclidean": similarity.euclidean_sim,
        "manhattan": similarity.manhattan_sim,
    }[measure]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("measure", "ties"), [*((name, False) for name in MEASURES), ("dot", True), ("manhattan", True)]
)
def test_reranking_as_in_sentence_transformers(rng, quiet, measure, ties):
    from sentence_transformers.sentence_transformer.evaluation import RerankingEvaluator

    rows = rng.integers(-2, 3, (200, 3)) if ties else rng.normal(size=(200, 3))
    rows = rows.astype(np.float32)
    samples = []
    for _ in range(30):
        texts = rng.choice(200, rng.integers(2, 40), replace=False).tolist()
        right = int(rng.integers(1, len(texts)))
        samples.append((int(rng.integers(0, 200)), texts, right))
    theirs = {}
    for k in (1, 3, 10):
        evaluator = RerankingEvaluator(
            [{"query": str(q), "positive": [*map(str, t[:r])], "negative": [*map(str, t[r:])]} for q, t, r in samples],
            at_k=k,
            write_csv=False,
            similarity_fct=_their_similarity(measure),
        )
        theirs |= evaluator(Model(rows))  # pyright: ignore
    ours = reranking(((rows[q], rows[t], r) for q, t, r in samples), (1, 3, 10), measure)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if not (ties and name.startswith("mrr")):  # theirs uses torch.argsort, which leaves ties unordered
            assert ours[name] == pytest.approx(value, abs=1e-6), name


def test_nearest_in_blocks_is_a_stable_sort(rng, monkeypatch):
    queries, corpus = (rng.integers(-2, 3, (count, 3)).astype(np.float32) for count in (70, 500))
    expected = np.argsort(-(queries @ corpus.T), axis=1, kind="stable")
    monkeypatch.setattr(embedding_scores, "QUERIES", 32)
    monkeypatch.setattr(embedding_scores, "BLOCK", 64)
    np.testing.assert_array_equal(ranked_indices(queries, corpus, 20, "dot"), expected[:, :20])
    np.testing.assert_array_equal(ranked_indices(queries, np.array_split(corpus, 3), 100, "dot"), expected[:, :100])
    np.testing.assert_array_equal(ranked_indices(queries, corpus[:5], 20, "dot").shape, (70, 5))
