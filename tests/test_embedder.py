"""Stella's results: shapes, formats, and the same bits for the same text."""

from typing import Any

import jax
import numpy as np
import pytest
from corruptions import settings
from hypothesis import example, given
from hypothesis import settings as few
from hypothesis import strategies as st
from paths import GOLDENS

from stella_jax import Stella, similarity
from stella_jax.quantization import Ranges, quantize

pytestmark = pytest.mark.usefixtures("two_buckets")

TEXTS = ["Green tea", "a", "", "北京 🍵", "What are some ways to reduce stress?", "word " * 100]


@pytest.fixture(scope="module")
def half() -> Stella:
    return Stella.from_pretrained(GOLDENS / "stella", dtype="bfloat16")


@pytest.fixture(params=["float32", "bfloat16"])
def model(request, stella, half) -> Stella:
    return {"float32": stella, "bfloat16": half}[request.param]


# --- results


def test_shapes_and_dtypes(stella):
    assert stella.encode("a").shape == (64,)
    assert stella.encode(["a"]).shape == (1, 64)
    assert stella.encode(TEXTS).shape == (6, 64)
    for empty in ([], (), np.array([], dtype=str)):
        assert stella.encode(empty).shape == (0, 64)
    for found in (stella.encode("a"), stella.encode(["a"]), stella.encode([])):
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32


def test_any_sequence_of_texts(stella):
    expected = stella.encode(TEXTS)
    for sequence in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object)):
        np.testing.assert_array_equal(stella.encode(sequence), expected)


def test_results_do_not_share_memory(stella):
    first = stella.encode(TEXTS)
    before = first.copy()
    stella.encode(TEXTS[::-1])
    np.testing.assert_array_equal(first, before)
    first[:] = 0  # results are writable
    stella.encode("a")[:] = 0


def test_results_are_finite(model):
    """Padding, in rows and of whole rows, does not reach a result."""
    for texts in (["a"], ["a", "b"], TEXTS, ["" for _ in range(70)]):
        assert np.isfinite(model.encode(texts)).all()


def test_token_embeddings(stella):
    states = stella.encode(TEXTS, output_value="token_embeddings")
    assert isinstance(states, list)
    assert [len(state) for state in states] == [len(tokens.ids) for tokens in stella.tokenize(TEXTS)]
    assert all(np.isfinite(state).all() for state in states)
    assert {state.shape[1] for state in states} == {stella.config.hidden_size}
    np.testing.assert_allclose(stella.encode(TEXTS[0], output_value="token_embeddings"), states[0], atol=1e-5)
    assert stella.encode([], output_value="token_embeddings") == []
    unpooled = Stella.from_pretrained(GOLDENS / "gte-large-en", dtype="float32")
    states = unpooled.encode(TEXTS[:2], output_value="token_embeddings")
    np.testing.assert_allclose([state[0] for state in states], unpooled.encode(TEXTS[:2]), atol=1e-5)


def test_truncation_normalization_and_precision(stella):
    whole = stella.encode(TEXTS)
    np.testing.assert_array_equal(stella.encode(TEXTS, truncate_dim=10), whole[:, :10])
    np.testing.assert_array_equal(stella.encode(TEXTS, truncate_dim=64), whole)
    unit = stella.encode(TEXTS, truncate_dim=10, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit, similarity.unit(whole[:, :10]), rtol=1e-6)
    signs = stella.encode(TEXTS, truncate_dim=10, precision="ubinary")
    assert (signs.dtype, signs.shape) == (np.uint8, (6, 2))
    np.testing.assert_array_equal(np.unpackbits(signs, axis=-1)[:, :10], whole[:, :10] > 0)
    signed = stella.encode(TEXTS, truncate_dim=10, precision="binary")
    assert signed.dtype == np.int8
    np.testing.assert_array_equal(signed.astype(int) + 128, signs)
    assert stella.encode([], precision="ubinary").shape == (0, 8)
    assert stella.encode([], precision="int8").shape == (0, 64)
    assert stella.encode("a", precision="binary").shape == (8,)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_int8_levels_in_the_ranges_of_the_embeddings(stella, caplog, precision, refused, check_message):
    whole = stella.encode(TEXTS, truncate_dim=10)
    found = stella.encode(TEXTS, truncate_dim=10, precision=precision)
    np.testing.assert_array_equal(found, quantize(whole, precision, Ranges.of(whole)))
    check_message(caplog.messages[0], f"{precision} ", "6 embeddings")
    caplog.clear()
    stella.encode(TEXTS * 20, truncate_dim=10, precision=precision)
    assert not caplog.text
    states = stella.encode(TEXTS, output_value="token_embeddings")
    ranges = Ranges.of(np.concatenate(states))
    found = stella.encode(TEXTS, output_value="token_embeddings", precision=precision)
    for levels, state in zip(found, states, strict=True):
        np.testing.assert_array_equal(levels, quantize(state, precision, ranges))
    with refused("int8 and uint8"):
        stella.encode("a", precision=precision)


def test_head_by_dimension():
    model = Stella.from_pretrained(GOLDENS / "stella", dim=32)
    assert (model.dim, model.dims) == (32, (32, 48, 64, 128))
    assert model.encode([]).shape == (0, 32)


def test_progress_bar(stella, capsys):
    stella.encode(TEXTS)
    assert capsys.readouterr().err == ""
    stella.encode(TEXTS, show_progress_bar=True)
    assert "6/6" in capsys.readouterr().err


# --- the same text, the same bits

POOL = ["a", "of the", "", "é🍵", "\0", "What are some ways to reduce stress?", "word " * 100, "tea " * 100]
neighbors = st.lists(st.sampled_from(POOL) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=90)


@few(max_examples=25)
@example(before=["a"] * 40, after=["word " * 100], batch=0)
@given(before=neighbors, after=neighbors, batch=st.integers(0, len(POOL) - 1))
def test_same_text_same_bits(stella, half, before, after, batch):
    """Alone in a list, at any index, with any neighbors, in both dtypes."""
    text = POOL[batch]
    for model in (stella, half):
        embeddings = model.encode([*before, text, *after])
        np.testing.assert_array_equal(embeddings[len(before)], model.encode([text])[0])


def test_same_bits_in_any_order(model):
    texts = [f"{text} {i}" for i in range(12) for text in POOL]
    expected = model.encode(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_array_equal(model.encode([texts[i] for i in order]), expected[order])
    np.testing.assert_array_equal(np.concatenate([model.encode(texts[:7]), model.encode(texts[7:])]), expected)


def test_padding_changes_no_bit(stella):
    """Ids after the text, and rows without a text."""
    found = []
    for filler in (0, 7, 2047):
        ids = np.full((4, 64), filler, np.int32)
        ids[0, :5] = [2, 50, 60, 70, 3]
        with jax.set_mesh(stella.mesh):
            lengths = np.array([5, 1, 64, 9], np.int32)
            found.append(np.asarray(stella.runner.forward(ids, lengths)[0])[0])
    np.testing.assert_array_equal(found[1:], found[:1] * 2)


def test_single_text_is_reproducible_and_equal_within_rounding(stella):
    for text in TEXTS:
        single = stella.encode(text)
        np.testing.assert_allclose(single, stella.encode([text])[0], atol=1e-5)
        np.testing.assert_array_equal(single, stella.encode(text))


def test_batch_size(stella):
    np.testing.assert_allclose(stella.encode(TEXTS, batch_size=1), stella.encode(TEXTS), atol=1e-5)


# --- lengths


def test_max_seq_length_truncates(stella):
    model = Stella.from_pretrained(GOLDENS / "stella", dtype="float32")
    assert model.max_seq_length == 64
    model.max_seq_length = 9
    cut = model.tokenize(["word " * 100, "a"])
    assert [len(tokens.ids) for tokens in cut] == [9, 3]
    np.testing.assert_array_equal(model.encode(["word " * 100]), stella.run_tokens(cut[:1]))
    model.max_seq_length = 512
    assert model.max_seq_length == 512


@pytest.mark.parametrize("value", [513, 2, 0, -1, "64", None, 64.0, True])
def test_invalid_max_seq_length(value, refused):
    model: Any = Stella.from_pretrained(GOLDENS / "stella", dtype="float32")
    with refused("max_seq_length", str(value)):
        model.max_seq_length = value
    assert model.max_seq_length == 64


def test_text_of_a_megabyte(stella):
    found = stella.encode(["x" * 2**20, "word " * 2**18])
    assert np.isfinite(found).all()


# --- arguments of sentence-transformers


def test_other_names_and_options_without_effect(stella):
    expected = stella.encode(TEXTS)
    np.testing.assert_array_equal(stella.encode(inputs=TEXTS), expected)
    np.testing.assert_array_equal(stella.encode_query(inputs=TEXTS, prompt=""), expected)
    np.testing.assert_array_equal(stella.encode_document(inputs=TEXTS), expected)
    options = {"convert_to_numpy": True, "convert_to_tensor": False, "device": "cpu", "pool": None, "chunk_size": None}
    np.testing.assert_array_equal(stella.encode(TEXTS, precision=None, **options), expected)
    options = {"device": "cpu", "trust_remote_code": True, "local_files_only": True, "token": False}
    from_pretrained: Any = Stella.from_pretrained
    model = from_pretrained(GOLDENS / "stella", dtype="float32", cache_folder="nowhere", **options)
    np.testing.assert_array_equal(model.encode(TEXTS), expected)


def test_truncate_dim_of_a_model(refused):
    model = Stella.from_pretrained(GOLDENS / "stella", dtype="float32", truncate_dim=10)
    whole = model.encode(TEXTS, truncate_dim=64)
    names = (model.get_embedding_dimension, model.get_sentence_embedding_dimension)
    assert (model.dim, model.truncate_dim, model.get_max_seq_length()) == (10, 10, 64)
    np.testing.assert_array_equal(model.encode(TEXTS), whole[:, :10])
    np.testing.assert_array_equal(model.encode_query(TEXTS, prompt="", truncate_dim=3), whole[:, :3])
    for cut in (model.truncate_embeddings, model.truncate_sentence_embeddings):
        with cut(20):
            assert [name() for name in names] == [20, 20]
            np.testing.assert_array_equal(model.encode(TEXTS), whole[:, :20])
        with cut(None):
            np.testing.assert_array_equal(model.encode(TEXTS), whole)
        assert model.dim == 10
    with refused("truncate_dim"):
        model.truncate_dim = 65


def test_own_prompts_and_similarity(refused):
    mine = {"query": "q: ", "s2s_query": "s: "}
    model = Stella.from_pretrained(
        GOLDENS / "stella", dtype="float32", prompts=mine, default_prompt_name="s2s_query", similarity_fn_name="dot"
    )
    assert model.prompts == {"s2p_query": model.prompts["s2p_query"], **mine}
    np.testing.assert_array_equal(model.encode(TEXTS), model.encode(TEXTS, prompt="s: "))
    np.testing.assert_array_equal(model.encode_query(TEXTS), model.encode(TEXTS, prompt="q: "))
    a = model.encode(TEXTS)
    assert model.similarity_fn_name == "dot"
    np.testing.assert_allclose(model.similarity(a, a), a @ a.T, rtol=1e-6)
    model.similarity_fn_name = "cosine"
    np.testing.assert_allclose(np.diag(model.similarity(a, a)), 1, atol=1e-6)
    with refused("similarity_fn_name", "maxsim"):
        model.similarity_fn_name = "maxsim"


@pytest.mark.parametrize("prompts", [{"mine": "my "}, {"query": "q: "}])
def test_own_prompts_and_similarity_are_saved(tmp_path, prompts):
    model = Stella.from_pretrained(GOLDENS / "stella", dtype="float32", prompts=prompts, similarity_fn_name="dot")
    model.save_pretrained(tmp_path / "saved")
    saved = Stella.from_pretrained(tmp_path / "saved", dtype="float32")
    assert saved.prompts == {"query": model.prompts["s2p_query"]} | model.prompts
    assert saved.similarity_fn_name == "dot"


def test_similarity_function_of_the_checkpoint(checkpoint_copy, stella):
    a, b = stella.encode(TEXTS), stella.encode(TEXTS[:2])
    cosine = stella.similarity(a, b)
    assert (cosine.shape, cosine.dtype) == ((6, 2), np.float32)
    np.testing.assert_allclose(np.diag(cosine), 1, atol=1e-6)
    assert stella.similarity_pairwise(a, a).shape == (6,)
    path = checkpoint_copy()
    settings(similarity_fn_name="manhattan")(path)
    manhattan = Stella.from_pretrained(path, dtype="float32")
    np.testing.assert_allclose(manhattan.similarity(a, b)[2, 1], -np.abs(a[2] - b[1]).sum(), rtol=1e-5)


def test_two_models_do_not_interfere(stella):
    """Models of the same shape share only their compiled programs."""
    other = Stella.from_pretrained(GOLDENS / "gte-large-en", dtype="float32")
    mine = stella.encode(TEXTS)
    assert other.encode(TEXTS).shape == mine.shape
    assert not np.allclose(other.encode(TEXTS), mine)
    np.testing.assert_array_equal(stella.encode(TEXTS), mine)


def test_several_heads_in_one_pass(stella):
    both = Stella.from_pretrained(GOLDENS / "stella", dim=(48, 128))
    tokens = both.tokenize(TEXTS)
    [(number, found)] = both.runner.stream([tokens], both.max_seq_length)
    assert (number, both.dim, both.runner.dims) == (0, 48, (48, 128))
    np.testing.assert_array_equal(found[0], both.encode(TEXTS))
    for dim, vectors in zip((48, 128), found, strict=True):
        np.testing.assert_array_equal(vectors, Stella.from_pretrained(GOLDENS / "stella", dim=dim).encode(TEXTS))


def test_stream_of_groups(stella):
    """Also with empty groups; a group may finish before an earlier one."""
    groups = [TEXTS[:1], [], TEXTS[1:], TEXTS[:2] * 9, []]
    found = dict(stella.runner.stream((stella.tokenize(texts) for texts in groups), stella.max_seq_length))
    assert sorted(found) == [0, 1, 2, 3, 4]
    for number, texts in enumerate(groups):
        np.testing.assert_array_equal(found[number][0], stella.encode(texts))
