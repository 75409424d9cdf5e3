"""mteb itself on small tasks in memory, against our evaluators."""

from typing import Any

import numpy as np
import pytest

from stella_jax import Stella
from stella_jax.mteb import MtebEncoder
from train.embedding_scores import retrieval, sts

pytestmark = [pytest.mark.torch, pytest.mark.nightly]  # the imports alone take ten seconds

WORDS = ["fog", "law", "owl", "sea", "ink", "jam", "elm", "oak", "ash", "bee", "cow", "sky"]
QUERIES = [f"a {word}" for word in WORDS]
CORPUS = [f"{word} {other}" for word in WORDS for other in WORDS[:4]]
RELEVANT = [{4 * i, 4 * i + (i % 3) + 1} for i in range(len(WORDS))]
SCORES = [float(i % 5) for i in range(len(WORDS))]


@pytest.fixture(scope="module", autouse=True)
def mteb():
    import mteb

    return mteb


@pytest.fixture(scope="module")
def tiny() -> Stella:
    """An encoder with room for a prompt."""
    model = Stella.from_pretrained("tiny", dim=32)
    model.max_seq_length = 48
    return model


@pytest.fixture(scope="module")
def encoder(tiny: Stella) -> MtebEncoder:
    return MtebEncoder(tiny)


def described(name: str, type: str, main_score: str) -> dict[str, Any]:
    """The required fields of mteb's TaskMetadata."""
    unknown = ("date", "domains", "task_subtypes", "license", "annotations_creators", "dialect", "sample_creation")
    return dict.fromkeys(unknown) | {
        "name": name,
        "description": name,
        "reference": None,
        "type": type,
        "category": "t2t",
        "modalities": ["text"],
        "eval_splits": ["test"],
        "eval_langs": ["eng-Latn"],
        "main_score": main_score,
        "dataset": {"path": "own/own", "revision": "1"},
        "bibtex_citation": "",
    }


@pytest.fixture
def retrieval_task(mteb) -> Any:
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    class Task(AbsTaskRetrieval):
        metadata = TaskMetadata(**described("OwnRetrieval", "Retrieval", "ndcg_at_10"))

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            data = RetrievalSplitData(
                queries=Dataset.from_list([{"id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]),
                corpus=Dataset.from_list([{"id": f"d{i:02}", "text": text} for i, text in enumerate(CORPUS)]),
                relevant_docs={f"q{i}": {f"d{j:02}": 1 for j in places} for i, places in enumerate(RELEVANT)},
                top_ranked=None,
            )
            self.dataset: Any = {"default": {"test": data}}
            self.data_loaded = True

    return Task()


@pytest.fixture
def sts_task(mteb) -> Any:
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class Task(AbsTaskSTS):
        metadata = TaskMetadata(**described("OwnSTS", "STS", "cosine_spearman"))
        min_score, max_score = 0, 4

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            rows = {"sentence1": QUERIES, "sentence2": CORPUS[: len(QUERIES)], "score": SCORES}
            self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})  # pyright: ignore[reportAttributeAccessIssue]
            self.data_loaded = True

    return Task()


def evaluated(mteb, encoder: MtebEncoder, task: Any) -> dict[str, float]:
    found = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    [scores] = found.task_results[0].scores["test"]
    return scores


def test_retrieval_scores(mteb, encoder, tiny, retrieval_task) -> None:
    found = evaluated(mteb, encoder, retrieval_task)
    cutoffs = (1, 3, 5, 10)
    ours = retrieval(tiny.encode_query(QUERIES), tiny.encode_document(CORPUS), RELEVANT, "cosine", *[cutoffs] * 4)
    for k in cutoffs:
        for name in ("ndcg", "recall", "precision", "mrr"):
            assert found[f"{name}_at_{k}"] == pytest.approx(ours[f"cosine_{name}@{k}"], abs=1e-5), (name, k)
    assert found["map_at_10"] == pytest.approx(ours["cosine_map@10"], abs=1e-5)  # at less, mteb divides by more than k
    assert 0.1 < found["ndcg_at_10"] < 0.95


def test_sts_scores_and_prompt(mteb, encoder, tiny, sts_task) -> None:
    found = evaluated(mteb, encoder, sts_task)
    first, second = (tiny.encode(texts, "s2s_query") for texts in (QUERIES, CORPUS[: len(QUERIES)]))
    ours = sts(first, second, SCORES)
    for name in ("cosine", "euclidean", "manhattan"):
        assert found[f"{name}_spearman"] == pytest.approx(ours[f"spearman_{name}"], abs=1e-5)
        assert found[f"{name}_pearson"] == pytest.approx(ours[f"pearson_{name}"], abs=1e-5)


class Metadata:
    name, type = "OwnRetrieval", "Retrieval"


def test_prompts_by_task_type_and_kind(mteb, tiny) -> None:
    from mteb.types import PromptType

    encoder = MtebEncoder(tiny, prompts={"Clustering": "topic: ", "OwnRetrieval-query": "own: "})

    def encode(kind: PromptType | None, type: str, name: str = "other") -> np.ndarray:
        metadata: Any = Metadata()
        metadata.name, metadata.type = name, type
        batches = [{"text": QUERIES[:5]}, {"text": QUERIES[5:]}]
        options: Any = {"hf_split": "test", "hf_subset": "default", "batch_size": 3}
        return encoder.encode(batches, task_metadata=metadata, prompt_type=kind, **options)

    np.testing.assert_array_equal(encode(PromptType.query, "Retrieval"), tiny.encode_query(QUERIES))
    np.testing.assert_array_equal(encode(PromptType.document, "Reranking"), tiny.encode_document(QUERIES))
    np.testing.assert_array_equal(encode(None, "STS"), tiny.encode(QUERIES, "s2s_query"))
    np.testing.assert_array_equal(encode(None, "Clustering"), tiny.encode(QUERIES, prompt="topic: "))
    own = encode(PromptType.query, "Retrieval", "OwnRetrieval")
    np.testing.assert_array_equal(own, tiny.encode(QUERIES, prompt="own: "))


def test_model_meta(mteb, encoder) -> None:
    from mteb.models import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert meta.framework == ["JAX", "safetensors"]
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("stella-jax/tiny", 32, 48)
    assert meta.similarity_fn_name == "cosine"
    other = MtebEncoder("tiny", dim=64).mteb_model_meta
    assert other.revision != meta.revision
    assert MtebEncoder("tiny", dim=64, name="me/mine").mteb_model_meta.name == "me/mine"
