"""sentence-transformers' evaluators and helpers on a `Stella` and on its own model with the same weights."""

import csv
from pathlib import Path

import numpy as np
import pytest
from paths import GOLDENS

from convert import to_torch
from stella_jax import Stella
from stella_jax.checkpoint.checkpoint import Checkpoint

pytestmark = pytest.mark.torch

QUERIES = ["what is tea?", "a game with kings", "animals that bark", "big cities", "to brew", "capital of China"]
TEXTS = ["A drink made of leaves.", "Chess is played on a board.", "A dog", "北京", "Coffee beans, ground.", "Paris"]
TEXTS += [f"{a} {b}" for a in ("red", "old", "small") for b in ("house", "tree", "car", "bird")]


@pytest.fixture(scope="module", params=["stella", "arctic-m-v2"])
def both(request, tmp_path_factory):
    """Our model and theirs with the same weights."""
    from sentence_transformers import SentenceTransformer

    path = tmp_path_factory.mktemp("native") / "model"
    to_torch(Checkpoint.open(GOLDENS / request.param), path, native=True)
    theirs = SentenceTransformer(str(path), device="cpu", local_files_only=True)
    return Stella.from_pretrained(GOLDENS / request.param, dtype="float32"), theirs


@pytest.fixture
def evaluators():
    from sentence_transformers.sentence_transformer import evaluation

    def make(truncate_dim: int | None = None) -> list:
        options = {"truncate_dim": truncate_dim, "batch_size": 8, "show_progress_bar": False}
        scores = np.linspace(0, 1, len(QUERIES)).tolist()
        return [
            evaluation.TripletEvaluator(QUERIES, TEXTS[:6], TEXTS[6:12], name="triplets", margin=0.01, **options),
            evaluation.EmbeddingSimilarityEvaluator(QUERIES, TEXTS[:6], scores, name="pairs", **options),
            evaluation.InformationRetrievalEvaluator(
                {str(i): text for i, text in enumerate(QUERIES)},
                {str(i): text for i, text in enumerate(TEXTS)},
                {str(i): {str(i), str(i + 6)} for i in range(len(QUERIES))},
                name="search",
                mrr_at_k=[3],
                ndcg_at_k=[5],
                corpus_chunk_size=10,
                **options,
            ),
        ]

    return make


def assert_same_scores(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, score in expected.items():
        assert found[name] == pytest.approx(score, abs=1e-5), name


@pytest.mark.parametrize(("cut", "models_cut"), [(None, None), (20, None), (None, 20), (40, 20)])
def test_evaluators_give_the_same_scores(both, evaluators, cut, models_cut):
    ours, theirs = both
    with ours.truncate_embeddings(models_cut), theirs.truncate_embeddings(models_cut):
        assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()
        for mine, other in zip(evaluators(cut), evaluators(cut), strict=True):
            assert_same_scores(mine(ours), other(theirs))
            assert mine.primary_metric == other.primary_metric


def test_evaluators_write_the_same_tables(both, evaluators, tmp_path: Path):
    names = ("ours", "theirs")
    for name, model in zip(names, both, strict=True):
        for evaluator in evaluators():
            results = model.evaluate(evaluator, str(tmp_path / name))
            assert model.model_card_data.eval_results_dict[evaluator] == results
    tables = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert len(tables) == 3 and tables == sorted(path.name for path in (tmp_path / "ours").iterdir())
    for table in tables:
        rows = [list(csv.reader((tmp_path / name / table).read_text().splitlines())) for name in names]
        assert rows[0][0] == rows[1][0]
        ours, theirs = ([float(x) for x in row[1]] for row in rows)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("options", [{"convert_to_tensor": True}, {"convert_to_numpy": False}])
@pytest.mark.parametrize("texts", [TEXTS, "one text"])
def test_tensors_have_the_same_types(both, options, texts):
    import torch

    for more in ({}, {"precision": "ubinary"}, {"truncate_dim": 9, "normalize_embeddings": True}):
        found, expected = (model.encode(texts, **options, **more) for model in both)
        assert type(found) is type(expected)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_token_embeddings_as_tensors(both):
    ours, theirs = (model.encode(TEXTS, output_value="token_embeddings", convert_to_tensor=True) for model in both)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_of_tensors(both, name):
    import torch
    from sentence_transformers import SimilarityFunction

    ours, theirs = both
    a, b = torch.randn(4, 7), torch.randn(4, 7)
    before = ours.similarity_fn_name
    ours.similarity_fn_name = theirs.similarity_fn_name = SimilarityFunction(name)
    for x, y in ((a, b), (list(a), b), (a, b.numpy()), (a[0], b)):
        found, expected = ours.similarity(x, y), theirs.similarity(x, y)
        assert isinstance(found, torch.Tensor) and found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.similarity_pairwise(a, b), theirs.similarity_pairwise(a, b), atol=1e-5, rtol=1e-5)
    assert isinstance(ours.similarity(a.numpy(), b.numpy()), np.ndarray)
    assert ours.similarity(a.bfloat16().requires_grad_(), b).dtype == torch.float32
    ours.similarity_fn_name = theirs.similarity_fn_name = before


def test_helpers_of_sentence_transformers_accept_our_embeddings(both):
    from sentence_transformers import util

    ours, theirs = both
    found, expected = (
        util.semantic_search(
            model.encode_query(QUERIES, convert_to_tensor=True), model.encode_document(TEXTS, convert_to_tensor=True)
        )
        for model in (ours, theirs)
    )
    for hits, others in zip(found, expected, strict=True):
        assert [hit["corpus_id"] for hit in hits] == [hit["corpus_id"] for hit in others]
