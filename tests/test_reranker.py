"""The reranker: scores against the reference and CrossEncoder, and its arguments."""

import json
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_rerankers import labels, saved_by_cross_encoder
from checkpoint_files import write_json
from corruptions import config, edited, modules
from paths import GOLDENS
from safetensors.numpy import load_file

from stella_jax import Reranker, Stella, load
from stella_jax.checkpoint.directory import SETTINGS
from stella_jax.models.heads import pool
from stella_jax.runner import Runner
from stella_jax.scores import activate
from stella_jax.tokenizer.tokenizer import Tokens

GOLDEN = GOLDENS / "gte-reranker"
BOUND = 1e-5  # 1e-4 is promised
LOREM = "Green tea has been consumed for centuries. "
PAIRS = [("tea", LOREM * n) for n in range(5)] + [(LOREM * 9, "a"), ("", ""), ("北京 🍵", "tea"), ("tea", "北京 🍵")]


@cache
def golden() -> tuple[list[tuple[str, str]], dict[str, np.ndarray]]:
    pairs = [tuple(pair) for pair in json.loads((GOLDEN / "expected_texts.json").read_text())["pairs"]]
    return pairs, load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker.from_pretrained(GOLDEN, dtype="float32", max_length=64)


@pytest.fixture(scope="module", autouse=True)
def two_buckets():
    """Batches of two lengths only, since each length is a compilation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stella_jax.batching.bucket_lengths", lambda longest: [32, max(longest, 33)])
        yield


# --- against the reference


def test_token_ids_equal_the_reference(reranker):
    pairs, expected = golden()
    lengths = expected["attention_mask"].sum(axis=1)
    rows = [row[:length].tolist() for row, length in zip(expected["input_ids"], lengths, strict=True)]
    assert [list(tokens.ids) for tokens in reranker.tokenize(pairs)] == rows
    assert not any(tokens.truncated for tokens in reranker.tokenize(pairs))


def test_logits(reranker):
    pairs, expected = golden()
    scores = reranker.predict(pairs, activation="none")
    assert (scores.dtype, scores.shape) == (np.float32, (3,))
    np.testing.assert_allclose(scores, expected["logits"][:, 0], rtol=0, atol=BOUND)


def test_sigmoid_is_the_default(reranker):
    pairs, expected = golden()
    wanted = 1 / (1 + np.exp(-expected["logits"][:, 0].astype(np.float64)))
    np.testing.assert_allclose(reranker.predict(pairs), wanted, rtol=0, atol=BOUND)
    np.testing.assert_array_equal(reranker.predict(pairs), reranker.predict(pairs, activation="sigmoid"))


def test_bfloat16():
    pairs, expected = golden()
    scores = Reranker.from_pretrained(GOLDEN, dtype="bfloat16").predict(pairs, activation="none")
    np.testing.assert_allclose(scores, expected["logits"][:, 0], rtol=0, atol=0.05)


def logits(
    reranker: Reranker, tokens: list[Tokens], pooling: str = "cls", tanh: bool = True, pooler: bool = True
) -> np.ndarray:
    """Raw scores stage by stage, in numpy after the encoder; the options introduce mistakes."""
    length = max(len(each.ids) for each in tokens)
    ids = np.array([[*each.ids, *[1] * (length - len(each.ids))] for each in tokens])
    lengths = jnp.array([len(each.ids) for each in tokens])
    x = np.asarray(pool(reranker.model.last_hidden(jnp.asarray(ids), lengths), lengths, pooling))  # pyright: ignore
    params = {name: np.asarray(value) for name, value in reranker.model.params().items()}
    if pooler:
        x = x @ params["head/pooler/kernel"] + params["head/pooler/bias"]
    x = np.tanh(x) if tanh else x
    return (x @ params["head/kernel"] + params["head/bias"])[:, 0]


MISTAKES: dict[str, Callable[[Reranker, list], np.ndarray]] = {
    "pair swapped": lambda reranker, pairs: logits(reranker, reranker.tokenize([pair[::-1] for pair in pairs])),
    "no tanh": lambda reranker, pairs: logits(reranker, reranker.tokenize(pairs), tanh=False),
    "no pooler": lambda reranker, pairs: logits(reranker, reranker.tokenize(pairs), pooler=False, tanh=False),
    "mean pooling": lambda reranker, pairs: logits(reranker, reranker.tokenize(pairs), pooling="mean"),
    "one </s> between": lambda reranker, pairs: logits(reranker, [one_separator(t) for t in reranker.tokenize(pairs)]),
}


def one_separator(tokens: Tokens) -> Tokens:
    ids = list(tokens.ids)
    del ids[ids.index(2)]
    return tokens._replace(ids=ids)


def test_stage_by_stage(reranker):
    pairs, expected = golden()
    np.testing.assert_allclose(logits(reranker, reranker.tokenize(pairs)), expected["logits"][:, 0], rtol=0, atol=BOUND)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tolerance_detects_mistakes(reranker, mistake):
    pairs, expected = golden()
    assert np.abs(MISTAKES[mistake](reranker, pairs) - expected["logits"][:, 0]).max() > 1e4 * BOUND


# --- the same bits


def test_bits_do_not_depend_on_neighbors_order_or_devices(reranker):
    together = reranker.predict(PAIRS, activation="none")
    one_by_one = np.concatenate([reranker.predict([pair], activation="none") for pair in PAIRS])
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_array_equal(together[::-1], reranker.predict(PAIRS[::-1], activation="none"))
    over_eight = Reranker.from_pretrained(GOLDEN, dtype="float32", mesh="data=8", max_length=64)
    np.testing.assert_array_equal(over_eight.predict(PAIRS, activation="none"), together)
    assert (together[2] != together[3]) and len(set(together.tolist())) == len(PAIRS)


def test_single_pair(reranker):
    score = reranker.predict(("tea", "green tea"))
    assert (score.dtype, score.shape) == (np.float32, ())
    np.testing.assert_allclose(score, reranker.predict([["tea", "green tea"]])[0], atol=1e-6)


def test_module_under_jit():
    _, expected = golden()
    model = load(GOLDEN)
    ids, lengths = jnp.asarray(expected["input_ids"]), jnp.asarray(expected["attention_mask"].sum(axis=1))
    np.testing.assert_allclose(jax.jit(model)(ids, lengths), expected["logits"], rtol=0, atol=BOUND)


# --- arguments and results


def test_pairs_in_every_form(reranker):
    expected = reranker.predict(PAIRS)
    for pairs in (tuple(PAIRS), [list(pair) for pair in PAIRS], np.array(PAIRS), np.array(PAIRS, dtype=object)):
        np.testing.assert_array_equal(reranker.predict(pairs), expected)
    for empty in ([], (), np.empty((0, 2), dtype=str)):
        found = reranker.predict(empty)
        assert (found.shape, found.dtype) == ((0,), np.float32)


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ("tea", "pairs"),
        (None, "pairs"),
        ({"a": "b"}, "pairs"),
        ([("a", "b"), "tea"], "pairs[1]"),
        ([("a", "b"), ("a",)], "pairs[1]"),
        ([("a", "b", "c")], "pairs[0]"),
        ([("a", None)], "pairs[0][1]"),
        ([(5, "a")], "pairs[0][0]"),
        ([("a", "\ud800")], "pairs[0][1]"),
        (("a", None), "pairs[0]"),
        (["a", "\ud800"], "pair[1]"),
        (np.array("a"), "pairs"),
        ([np.array("a")], "pairs[0]"),
    ],
)
def test_invalid_pairs(reranker, pairs, named, refused):
    with refused(named):
        reranker.predict(pairs)


def test_invalid_arguments(reranker, refused):
    with refused("activation"):
        reranker.predict(PAIRS, activation="softmax")
    with refused("batch_size"):
        reranker.predict(PAIRS, batch_size=0)
    with refused("top_k"):
        reranker.rank("tea", ["a"], top_k=0)
    with refused("texts[0]"):
        reranker.rank("tea", [5])  # pyright: ignore[reportArgumentType]
    with refused("texts"):
        reranker.rank("tea", "abc")
    with refused("query"):
        reranker.rank(None, ["a"])  # pyright: ignore[reportArgumentType]
    with refused("max_seq_length"):
        reranker.max_length = 513
    with refused("Reranker.from_pretrained('x')"):
        Reranker("x")  # pyright: ignore[reportArgumentType]


def test_rank(reranker):
    documents = [text for _, text in golden()[0]] + ["", "tea"]
    ranked = reranker.rank("green tea", documents)
    scores = reranker.predict([("green tea", text) for text in documents])
    assert [each["corpus_id"] for each in ranked] == np.argsort(-scores, kind="stable").tolist()
    assert [each["score"] for each in ranked] == sorted(scores.tolist(), reverse=True)
    assert reranker.rank("green tea", documents, top_k=2) == ranked[:2]
    with_texts = reranker.rank("green tea", documents, top_k=2, return_documents=True, activation="none")
    assert [each["text"] for each in with_texts] == [documents[each["corpus_id"]] for each in ranked[:2]]
    assert with_texts[0]["score"] > 0 and reranker.rank("tea", []) == []


def test_batch_size_limits_the_rows_of_a_batch(reranker, monkeypatch, refused):
    rows, stream = [], Runner.stream

    def counted(self, groups, max_length, limit, on_batch):
        return stream(self, groups, max_length, limit, lambda batch: (rows.append(batch.rows), on_batch(batch)))

    monkeypatch.setattr(Runner, "stream", counted)
    texts = [text for _, text in PAIRS]
    whole = reranker.rank("tea", texts)
    assert max(rows) > 2
    rows.clear()
    ranked = reranker.rank("tea", texts, batch_size=2)
    assert len(rows) >= len(texts) / 2 and max(rows) <= 2
    assert [each["corpus_id"] for each in ranked] == [each["corpus_id"] for each in whole]
    np.testing.assert_allclose([each["score"] for each in ranked], [each["score"] for each in whole], atol=BOUND)
    with refused("batch_size"):
        reranker.rank("tea", texts, batch_size=0)


def test_ranking_of_scores_that_round_to_one(reranker, monkeypatch):
    monkeypatch.setattr(Reranker, "run_tokens", lambda *_: np.array([[30], [40], [35]], np.float32))
    ranked = reranker.rank("a", ["b", "c", "d"])
    assert [each["corpus_id"] for each in ranked] == [1, 2, 0]
    assert {each["score"] for each in ranked} == {1.0}


def test_sigmoid():
    logits = np.array([-1e4, -100, -3.5, 0, 3.5, 100, 1e4], np.float32)
    scores = activate(logits, "sigmoid")
    np.testing.assert_allclose(scores[1:6], [3.78e-44, 0.0293122, 0.5, 0.9706878, 1], rtol=1e-2)
    np.testing.assert_array_equal(activate(np.tile(logits, (2, 1)).T, "sigmoid")[:, 1], scores)
    np.testing.assert_array_equal([activate(each, "sigmoid") for each in logits], scores)


def test_max_length_truncates_the_longer_text(reranker):
    assert Reranker.from_pretrained(GOLDEN).max_length == 512  # the tokenizer has 8192, the encoder 512
    [tokens] = reranker.tokenize([("tea", LOREM * 50)])
    assert (len(tokens.ids), tokens.truncated) == (64, True)


# --- wrong classes and settings


def test_stella_refuses_a_reranker(refused):
    with refused("gte-reranker"):
        Stella.from_pretrained(GOLDEN)


@pytest.mark.parametrize("name", ["stella", "gte-multilingual", "gte-qwen2"])
def test_reranker_refuses_an_embedding_model(name, refused):
    with refused(name):
        Reranker.from_pretrained(GOLDENS / name)


@pytest.mark.parametrize(
    ("corrupt", "activation"),
    [
        (labels(1), "sigmoid"),
        (config(sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}), "none"),
        (config(sbert_ce_default_activation_function="torch.nn.modules.linear.Identity"), "none"),
        (config(sbert_ce_default_activation_function=None, sentence_transformers={}), "sigmoid"),
        (saved_by_cross_encoder(activation_fn="torch.nn.modules.linear.Identity"), "none"),
        (saved_by_cross_encoder(activation_fn=None, prompts={"q": "q: "}), "sigmoid"),
        (lambda path: write_json(path / SETTINGS, {"activation_fn": "torch.nn.modules.linear.Identity"}), "sigmoid"),
        (modules("Transformer:"), "sigmoid"),
    ],
)
def test_activation_of_the_checkpoint(checkpoint_copy, reranker, corrupt, activation):
    path = checkpoint_copy("gte-reranker")
    corrupt(path)
    found = Reranker.from_pretrained(path)
    assert found.activation == activation
    pairs, _ = golden()
    np.testing.assert_array_equal(found.predict(pairs), reranker.predict(pairs, activation=activation))


def test_newest_settings_take_precedence(checkpoint_copy):
    path = checkpoint_copy("gte-reranker")
    saved_by_cross_encoder(activation_fn="torch.nn.modules.activation.Sigmoid")(path)
    edited("config.json", sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})(path)
    assert Reranker.from_pretrained(path).activation == "sigmoid"
