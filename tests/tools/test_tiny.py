"""Training of the included checkpoint, and its quality."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets_of_rows import dataset_of
from safetensors.numpy import load_file

from stella_jax import Stella
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.hub import TINY
from tools.tiny import untrained as weights
from tools.tiny.__main__ import join, main
from tools.tiny.glosses import write_pairs, write_questions
from train.data_reader import read_dataset
from train.embedding_scores import triplet_accuracy

WORDNET = Path(__file__).parent.parent.parent / "examples/wordnet"


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    directory = tmp_path / "untrained"
    shutil.copytree(TINY, directory, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer.json"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"vocab_size": 60, "torch_dtype": "float32"}))
    return directory


def test_same_texts_give_same_checkpoint(untrained):
    texts = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen jugs"]
    found = []
    for _ in range(2):
        weights.write_tokenizer(untrained, texts)
        weights.write_weights(untrained)
        found.append([path.read_bytes() for path in sorted(untrained.rglob("*")) if path.is_file()])
        assert Stella.from_pretrained(untrained).encode(texts).shape == (2, 128)
    assert found[0] == found[1]


def test_too_few_texts_for_the_vocabulary(untrained, refused):
    with refused("7 of 60 tokens"):
        weights.write_tokenizer(untrained, ["a b"])


# Anchors are words, or glosses whose positive is their category.
PAIRS = dataset_of(
    [
        ("oak", "a tree with acorns"),
        ("elm", "a tree of avenues"),
        ("joy", "a great gladness"),
        ("a tree with acorns", "a plant of wood"),
        ("a tree of avenues", "a plant of wood"),
        ("plant", "a plant of wood"),
    ],
    "here",
)


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_with_derived_pairs(tmp_path):
    write_pairs(PAIRS, tmp_path / "pairs.jsonl")
    found = [(row["anchor"], row["positive"]) for row in lines(tmp_path / "pairs.jsonl")]
    assert found[:8] == [
        *zip(PAIRS.texts["anchor"], PAIRS.texts["positive"], strict=True),
        *[(w, "a plant of wood") for w in ("oak", "elm")],
    ]
    glosses = sorted(set(PAIRS.texts["positive"]))
    assert len(found[8:]) <= len(glosses)
    for halves in found[8:]:
        assert sorted(" ".join(halves).split()) in [sorted(gloss.split()) for gloss in glosses]


def test_negatives_of_questions_are_of_the_same_kind(tmp_path):
    ready = dataset_of([("What is ash?", "what is left of a fire", "a plant of wood"), ("h", "held", "n")], "here")
    file = tmp_path / "questions.jsonl"
    write_questions(PAIRS, ready, {"held"}, ["query: "], file)
    found = [(row["anchor"].removeprefix("query: "), row["positive"], row["negative"]) for row in lines(file)]
    assert found[0] == ("What is ash?", "what is left of a fire", "a plant of wood")
    assert all("held" not in texts for texts in found)
    wrong = {positive: negative for _, positive, negative in found}
    assert wrong["a tree with acorns"] == "a tree of avenues" and wrong["a tree of avenues"] == "a tree with acorns"
    words = {word for anchor, _, _ in found for word in ("oak", "elm", "joy", "plant") if word in anchor}
    assert words >= {"oak", "elm"} and not any("acorns" in anchor for anchor, _, _ in found)


def test_join_encoder_and_heads_of_several_runs(untrained, tmp_path):
    weights.write_tokenizer(
        untrained, ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen jugs"]
    )
    parts = {}
    for seed, name in enumerate(("base", "encoder", "head")):
        weights.SEED, kept = seed, weights.SEED
        weights.write_weights(untrained)
        weights.SEED = kept
        parts[name] = Path(shutil.copytree(untrained, tmp_path / name))
    join(Checkpoint.open(parts["base"]), parts["encoder"], {"2_Dense_64": parts["head"]}, tmp_path / "out")
    for file, name in (
        ("model.safetensors", "encoder"),
        ("2_Dense_128/model.safetensors", "encoder"),
        ("2_Dense_64/model.safetensors", "head"),
    ):
        found, wanted = load_file(tmp_path / "out" / file), load_file(parts[name] / file)
        assert found.keys() == wanted.keys()
        for tensor in found:
            np.testing.assert_array_equal(found[tensor], wanted[tensor].astype(np.float16))
    assert Stella.from_pretrained(tmp_path / "out").encode("a fox").shape == (128,)


@pytest.mark.slow
def test_scores_match_the_model_card():
    card = (TINY / "README.md").read_text()
    rows = read_dataset(WORDNET / "wordnet_triplets_test.jsonl.gz")
    dims = (32, 64, 128)
    model = Stella.from_pretrained("tiny", dim=dims, dtype="float32")
    found = dict(model.runner.stream(map(model.tokenize, rows.texts.values()), model.max_seq_length))
    for head, dim in enumerate(dims):
        stated = re.search(rf"\| {dim} \| ([\d.]+)", card)
        scores = triplet_accuracy(*(found[column][head] for column in range(3)))
        assert stated and scores["cosine_accuracy"] == pytest.approx(float(stated[1]), abs=2e-3)


def test_missing_input(tmp_path, capsys, check_message):
    assert main([str(tmp_path / "absent.jsonl"), "--out", str(tmp_path / "tiny")]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "tools.tiny: error: ", "absent.jsonl")
