"""Which negatives are chosen: those of sentence-transformers on the same vectors."""

import itertools
from typing import Any

import numpy as np
import pytest

from stella_jax.similarity import unit
from train import negative_selection as module
from train.hard_negatives import Vectors, find_negatives
from train.negative_rows import OUTPUT_FORMATS, Mined
from train.negative_selection import MiningOptions
from train.pairs import pairs_of

ROWS, DIM = 80, 12
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_negatives": 1},
    {"range_min": 2, "range_max": 9, "num_negatives": 5},
    {"relative_margin": 0.05},
    {"relative_margin": -0.2, "range_max": 12},
    {"absolute_margin": 0.1, "num_negatives": 4},
    {"absolute_margin": 0.0, "relative_margin": 0.3, "max_score": 0.6, "min_score": 0.1},
    {"max_score": 0.5},
    {"min_score": 0.45, "num_negatives": 6},
    {"range_max": 70, "range_min": 60},
    {"include_positives": True, "num_negatives": 8},
]


def texts_and_vectors() -> tuple[list[tuple[str, str]], list[str], dict[str, np.ndarray]]:
    """Pairs (some anchors with two or three positives, one pair twice), more candidates, and a vector for each text."""
    rng = np.random.default_rng(3)
    rows = [(f"anchor {i % 60}", f"positive {i}") for i in range(ROWS)]
    rows += [("anchor 3", "positive 70"), rows[5]]
    candidates = [f"other {i}" for i in range(100)] + ["other 7", "positive 2"]
    vectors = {text: rng.standard_normal(DIM) for text in [*candidates, *(positive for _, positive in rows)]}
    vectors |= {anchor: vectors[positive] + rng.standard_normal(DIM) for anchor, positive in rows}
    return rows, candidates, {text: vector.astype(np.float32) for text, vector in vectors.items()}


def mined(options: dict[str, Any], corpus: bool) -> Mined:
    rows, candidates, vectors = texts_and_vectors()
    pairs = pairs_of(rows, candidates if corpus else ())
    ours, others = (unit(np.stack([vectors[text] for text in texts])) for texts in (pairs.anchors, pairs.corpus))
    return find_negatives(pairs, Vectors(others, ours, np.arange(len(ours))), MiningOptions(**options))


@pytest.fixture(scope="module")
def theirs():
    """mine_hard_negatives with a stub in place of the model."""
    import datasets
    import torch
    from sentence_transformers.util import cos_sim, mine_hard_negatives, pairwise_cos_sim

    rows, candidates, vectors = texts_and_vectors()

    class Stub:
        device = torch.device("cpu")
        similarity = staticmethod(cos_sim)
        similarity_pairwise = staticmethod(pairwise_cos_sim)

        def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
            return unit(np.stack([vectors[text] for text in texts]))

        encode_document = encode_query

    def mine(options: dict[str, Any], corpus: bool, output_format: str, scores: bool) -> list[dict[str, Any]]:
        found = mine_hard_negatives(
            datasets.Dataset.from_list([{"anchor": anchor, "positive": positive} for anchor, positive in rows]),
            Stub(),  # pyright: ignore[reportArgumentType]
            corpus=candidates if corpus else None,
            output_format=output_format,  # pyright: ignore[reportArgumentType]
            output_scores=scores,
            verbose=False,
            **options,
        )
        return [dict(row) for row in found]

    return mine


def in_our_columns(row: dict[str, Any]) -> dict[str, Any]:
    names = {"negative_1": "negative", "scores": "score", "labels": "label"}
    return {names.get(name, name): value for name, value in row.items()}


def same_rows(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs) > 0
    for our, their in zip(ours, map(in_our_columns, theirs), strict=True):
        assert our.keys() == their.keys()
        assert {**our, "score": 0} == {**their, "score": 0}
        np.testing.assert_allclose(our.get("score", 0), their.get("score", 0), atol=1e-6)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_top_chooses_as_sentence_transformers_does(theirs, options: dict[str, Any]) -> None:
    """The same texts, with and without a corpus; no two scores of these vectors are equal."""
    for corpus, scores in itertools.product((False, True), (False, True)):
        same_rows(list(mined(options, corpus).rows("n-tuple", scores)), theirs(options, corpus, "n-tuple", scores))


@pytest.mark.torch
@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_formats_are_those_of_sentence_transformers(theirs, output_format: str) -> None:
    """Of anchors that lack some negatives, or all."""
    options = {"relative_margin": 0.4, "num_negatives": 4, "range_max": 15}
    for scores in (False, True):
        same_rows(list(mined(options, True).rows(output_format, scores)), theirs(options, True, output_format, scores))


@pytest.mark.torch
def test_random_draws_from_the_candidates_of_sentence_transformers(theirs) -> None:
    """All that theirs ever draws is drawn by ours over many seeds, and nothing else; in the order of the scores."""
    options = {"sampling_strategy": "random", "num_negatives": 3, "range_min": 1, "range_max": 7, "max_score": 0.8}

    def drawn(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
        return {(row["anchor"], row["negative"]) for row in rows}

    all_theirs = set().union(*(drawn(theirs(options, True, "triplet", False)) for _ in range(40)))
    all_ours = set().union(
        *(drawn(list(mined(options | {"seed": seed}, True).rows("triplet", False))) for seed in range(40))
    )
    assert all_ours == all_theirs
    found = mined(options, True).negatives
    assert (np.diff(found.scores, axis=1) <= 0).all()


def test_random_draws_depend_on_the_seed_and_not_on_blocks(monkeypatch) -> None:
    options = {"sampling_strategy": "random", "range_max": 30}
    whole = mined(options, True).negatives
    np.testing.assert_array_equal(whole.rows, mined(options, True).negatives.rows)
    assert (whole.rows != mined(options | {"seed": 1}, True).negatives.rows).any()
    monkeypatch.setattr("train.hard_negatives.MAX_ANCHORS", 16)
    monkeypatch.setattr("train.hard_negatives.ANCHORS_PER_SEED", 16)
    monkeypatch.setattr(module, "ANCHORS_PER_SEED", 16)
    blocks = mined(options, True).negatives
    monkeypatch.setattr("train.hard_negatives.MAX_ANCHORS", 48)
    np.testing.assert_array_equal(blocks.rows, mined(options, True).negatives.rows)


def test_skipped_candidates_are_counted(check_message) -> None:
    found = mined({"relative_margin": 0.4, "max_score": 0.5, "num_negatives": 4, "range_max": 15}, True)
    assert found.negatives.skipped["relative_margin"] > 0 and found.negatives.skipped["max_score"] > 0
    check_message(found.shortage(), "4 negatives", "range_max", "max_score", "relative_margin")
    assert found.shortage() in str(found)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_negatives": 0}, "num_negatives"),
        ({"range_min": -1}, "range_min"),
        ({"range_max": 2}, "range_max"),
        ({"range_min": 5, "range_max": 7}, "range_max"),
        ({"relative_margin": 1.5}, "relative_margin"),
        ({"relative_margin": float("nan")}, "relative_margin"),
        ({"absolute_margin": 3.0}, "absolute_margin"),
        ({"max_score": 2.0}, "max_score"),
        ({"min_score": 0.5, "max_score": 0.4}, "min_score"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], name: str, refused) -> None:
    with refused(name):
        MiningOptions(**options)
