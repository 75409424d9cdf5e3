"""A recipe's evaluators: their files, and scores equal to those of all texts at once."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train import embedding_scores, recipe_evaluators
from train.recipe_evaluators import Reranking, Retrieval, ScoredPairs, identity_of, prompts_of, read_evaluator
from train.sections import EvaluatorSection


def section(kind: str, path: Path, **settings) -> EvaluatorSection:
    return EvaluatorSection("own", kind, str(path), **settings)


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def embed(texts: Sequence[str], kind: str) -> np.ndarray:
    """A random embedding for each text, and another one for it as a query."""
    seeds = [[*text.encode(), kind == "query"] for text in texts]
    return np.array([np.random.default_rng(seed).normal(size=4) for seed in seeds], np.float32).reshape(-1, 4)


@pytest.fixture
def beir(tmp_path) -> Path:
    write(tmp_path / "queries.jsonl", *({"_id": f"q{i}", "text": f"query {i}"} for i in range(9)))
    corpus = [{"_id": 30 - i, "title": "Title" * (i % 2), "text": f"text {i}"} for i in range(30)]
    write(tmp_path / "corpus.jsonl", *corpus)
    lines = [f"q{i}\t{i + j + 1}\t{score}" for i in range(8) for j, score in ((0, 1), (5, 2), (9, 0))]
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return tmp_path


def test_retrieval_reads_beirs_layout(beir) -> None:
    found = read_evaluator(section("retrieval", beir))
    assert isinstance(found, Retrieval)
    assert found.queries == [f"query {i}" for i in range(8)]  # q8 has nothing relevant
    assert found.corpus[0] == "Title text 29"  # in the order of ids as text: 1, 10, 11, ...
    assert found.corpus[1] == "text 20"
    texts = [{found.corpus[place].split()[-1] for place in places} for places in found.relevant]
    assert texts == [{str(29 - i), str(24 - i)} for i in range(8)]


@pytest.mark.parametrize("k", [(), (1, 7)])
def test_retrieval_in_blocks_scores_as_at_once(beir, monkeypatch, k) -> None:
    monkeypatch.setattr(recipe_evaluators, "BLOCK", 7)
    found = read_evaluator(section("retrieval", beir, k=list(k), measure="dot"))
    assert isinstance(found, Retrieval)
    cutoffs = [k] * 4 if k else []
    texts = embed(found.queries, "query"), embed(found.corpus, "document")
    assert found(embed) == pytest.approx(embedding_scores.retrieval(*texts, found.relevant, "dot", *cutoffs))
    assert found.best in found(embed)


def test_pairs_and_triplets_in_blocks_score_as_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(recipe_evaluators, "BLOCK", 4)
    texts = [[f"{column}{i}" for i in range(10)] for column in "abc"]
    rows = [
        dict(zip(("sentence1", "sentence2", "score"), (a, b, i % 3), strict=True))
        for i, (a, b, _) in enumerate(zip(*texts, strict=True))
    ]
    pairs = read_evaluator(section("pairs", write(tmp_path / "pairs.jsonl", *rows)))
    first, second = (embed(column, "query") for column in texts[:2])
    assert pairs(embed) == pytest.approx(embedding_scores.sts(first, second, [i % 3 for i in range(10)]))
    rows = [dict(zip(("anchor", "positive", "negative"), row, strict=True)) for row in zip(*texts, strict=True)]
    triplets = read_evaluator(section("triplets", write(tmp_path / "triplets.jsonl", *rows)))
    expected = embedding_scores.triplet_accuracy(first, *(embed(column, "document") for column in texts[1:]))
    assert triplets(embed) == expected
    assert {pairs.best, triplets.best} <= {*pairs(embed), *triplets(embed)}


def test_reranking_takes_lists_and_single_texts_in_any_format(tmp_path, monkeypatch) -> None:
    rows = [{"query": f"q{i}", "positive": [f"p{i}"], "negative": [f"n{j}" for j in range(i)]} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "lists.parquet")
    found = read_evaluator(section("reranking", tmp_path / "lists.parquet", k=(2,)))
    assert isinstance(found, Reranking)
    assert found.queries == ["q1", "q2", "q3", "q4", "q5"]  # q0 has no negative
    scores = found(embed)
    monkeypatch.setattr(recipe_evaluators, "BLOCK", 4)
    assert found(embed) == pytest.approx(scores)
    assert found.best in scores
    single = read_evaluator(section("reranking", write(tmp_path / "one.jsonl", rows[1] | {"positive": "p1"}), k=(2,)))
    assert isinstance(single, Reranking)
    assert (single.positives, single.negatives) == ([["p1"]], [["n0"]])


def test_different_texts_have_different_hashes(tmp_path) -> None:
    row = {"sentence1": "a", "sentence2": "b", "score": 1}
    paths = [write(tmp_path / f"{i}.jsonl", row | {"sentence2": text}) for i, text in enumerate("bbc")]
    sections = [section("pairs", path) for path in paths]
    same, again, other = (identity_of(each, read_evaluator(each)) for each in sections)
    assert same == again != other


def test_pairs_from_csv(tmp_path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("sentence1,sentence2,score\na,b,0.5\nb,c,1\n")
    pairs = read_evaluator(section("pairs", path))
    assert pairs == ScoredPairs(["a", "b"], ["b", "c"], [0.5, 1])


def test_prompts_are_those_of_training_except_for_pairs(tmp_path) -> None:
    trained = {"anchor": "s2p_query"}
    assert prompts_of(section("retrieval", tmp_path), trained) == {"query": "s2p_query", "document": ""}
    assert prompts_of(section("retrieval", tmp_path, prompts={"query": "q: "}), trained)["query"] == "q: "
    assert prompts_of(section("pairs", tmp_path), trained) == {}


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("qrels/test.tsv", "q1\tno such\t1\nq2\t3\t1\n", "no such"),
        ("qrels/test.tsv", "q1\t1\t1\nq2 3 1\n", "row 2"),
        ("qrels/test.tsv", "q1\t1\t0\n", "qrels/test.tsv"),
        ("corpus.jsonl", '{"_id": 1, "text": "a"}\n{"_id": 1, "text": "b"}\n', "corpus.jsonl"),
        ("corpus.jsonl", '{"_id": 1, "title": "a"}\n', "corpus.jsonl"),
        ("queries.jsonl", "", "queries.jsonl"),
    ],
)
def test_faulty_retrieval_data(beir, file, text, name, refused) -> None:
    (beir / file).write_text(text)
    with refused(name):
        read_evaluator(section("retrieval", beir))


@pytest.mark.parametrize("missing", ["queries.jsonl", "corpus.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(beir, missing, refused) -> None:
    (beir / missing).unlink()
    with refused(missing):
        read_evaluator(section("retrieval", beir))


@pytest.mark.parametrize(
    ("kind", "row", "name"),
    [
        ("pairs", {"sentence1": "a", "sentence2": "b", "score": "high"}, "row 1: score"),
        ("pairs", {"sentence1": "a", "sentence2": "b", "score": float("nan")}, "row 1: score"),
        ("pairs", {"sentence1": "a", "score": 1}, "row 1: sentence2"),
        ("triplets", {"anchor": "a", "positive": "b"}, "row 1: negative"),
        ("reranking", {"query": "a", "positive": ["b", 3], "negative": "c"}, "row 1: positive"),
        ("reranking", {"query": "a", "positive": ["b"], "negative": []}, "rows.jsonl"),
    ],
)
def test_faulty_rows(tmp_path, kind, row, name, refused) -> None:
    with refused(name):
        read_evaluator(section(kind, write(tmp_path / "rows.jsonl", row)))
    with refused("none.jsonl"):
        read_evaluator(section(kind, tmp_path / "none.jsonl"))
