"""The contract of Stella: what goes in, what comes out, and that a text's numbers are its own."""

import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from corruptions import settings
from hypothesis import example, given
from hypothesis import settings as few
from hypothesis import strategies as st
from paths import GOLDENS

from stella_jax import Stella, StellaError, similarity
from stella_jax.quantization import Ranges, quantize

TEXTS = ["Green tea", "a", "", "北京 🍵", "What are some ways to reduce stress?", "word " * 100]


@pytest.fixture(scope="module", autouse=True)
def two_buckets() -> Iterator[None]:
    """As many as it takes for texts to meet; each is a compilation. test_oracle.py meets the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stella_jax.batching.bucket_lengths", lambda longest: [16, max(longest, 17)])
        yield


@pytest.fixture(scope="module")
def half() -> Stella:
    return Stella.from_pretrained(GOLDENS / "stella", dtype="bfloat16")


@pytest.fixture(params=["float32", "bfloat16"])
def model(request, stella, half) -> Stella:
    return {"float32": stella, "bfloat16": half}[request.param]


# --- what comes out


def test_shapes_and_dtypes(stella):
    assert stella.encode("a").shape == (64,)
    assert stella.encode(["a"]).shape == (1, 64)
    assert stella.encode(TEXTS).shape == (6, 64)
    for empty in ([], (), np.array([], dtype=str)):
        assert stella.encode(empty).shape == (0, 64)
    for found in (stella.encode("a"), stella.encode(["a"]), stella.encode([])):
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32


def test_every_sequence_of_texts_will_do(stella):
    expected = stella.encode(TEXTS)
    for sequence in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object)):
        np.testing.assert_array_equal(stella.encode(sequence), expected)


def test_no_result_is_a_view_of_another(stella):
    first = stella.encode(TEXTS)
    before = first.copy()
    stella.encode(TEXTS[::-1])
    np.testing.assert_array_equal(first, before)
    first[:] = 0  # and it may be written to
    stella.encode("a")[:] = 0


def test_every_number_is_finite(model):
    """Rows that are padding alone, and padding within rows, reach no result."""
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
def test_levels_in_the_ranges_of_the_embeddings_themselves(stella, caplog, precision):
    whole = stella.encode(TEXTS, truncate_dim=10)
    found = stella.encode(TEXTS, truncate_dim=10, precision=precision)
    np.testing.assert_array_equal(found, quantize(whole, precision, Ranges.of(whole)))
    assert f"{precision} ranges from only 6 embeddings" in caplog.text
    caplog.clear()
    stella.encode(TEXTS * 20, truncate_dim=10, precision=precision)
    assert not caplog.text
    states = stella.encode(TEXTS, output_value="token_embeddings")
    ranges = Ranges.of(np.concatenate(states))
    found = stella.encode(TEXTS, output_value="token_embeddings", precision=precision)
    for levels, state in zip(found, states, strict=True):
        np.testing.assert_array_equal(levels, quantize(state, precision, ranges))
    with pytest.raises(StellaError, match="from two embeddings or more, not 1"):
        stella.encode("a", precision=precision)


def test_a_head_is_picked_by_its_dimension():
    model = Stella.from_pretrained(GOLDENS / "stella", dim=32)
    assert (model.dim, model.dims) == (32, (32, 48, 64, 128))
    assert model.encode([]).shape == (0, 32)


def test_a_progress_bar_is_shown_when_asked_for(stella, capsys):
    stella.encode(TEXTS)
    assert capsys.readouterr().err == ""
    stella.encode(TEXTS, show_progress_bar=True)
    assert "6/6" in capsys.readouterr().err


# --- the same text, the same bits

POOL = ["a", "of the", "", "é🍵", "\0", "What are some ways to reduce stress?", "word " * 100, "tea " * 100]
neighbours = st.lists(
    st.sampled_from(POOL) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=90
)


@few(max_examples=25)
@example(before=["a"] * 40, after=["word " * 100], batch=0)
@given(before=neighbours, after=neighbours, batch=st.integers(0, len(POOL) - 1))
def test_a_text_has_the_same_bits_anywhere(stella, half, before, after, batch):
    """Alone in a list, at any place, among any neighbours, in both dtypes."""
    text = POOL[batch]
    for model in (stella, half):
        embeddings = model.encode([*before, text, *after])
        np.testing.assert_array_equal(embeddings[len(before)], model.encode([text])[0])


def test_every_order_gives_the_same_bits(model):
    texts = [f"{text} {i}" for i in range(12) for text in POOL]
    expected = model.encode(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_array_equal(model.encode([texts[i] for i in order]), expected[order])
    np.testing.assert_array_equal(np.concatenate([model.encode(texts[:7]), model.encode(texts[7:])]), expected)


def test_what_stands_in_the_padding_changes_no_bit(stella):
    """Ids after a text's own, and whole rows that hold none."""
    found = []
    for filler in (0, 7, 2047):
        ids = np.full((4, 64), filler, np.int32)
        ids[0, :5] = [2, 50, 60, 70, 3]
        with jax.set_mesh(stella.mesh):
            lengths = np.array([5, 1, 64, 9], np.int32)
            found.append(np.asarray(stella.runner.forward(ids, lengths)[0])[0])
    np.testing.assert_array_equal(found[1:], found[:1] * 2)


def test_a_lone_text_is_the_same_within_rounding_and_reproducible(stella):
    for text in TEXTS:
        alone = stella.encode(text)
        np.testing.assert_allclose(alone, stella.encode([text])[0], atol=1e-5)
        np.testing.assert_array_equal(alone, stella.encode(text))


def test_batch_size_bounds_the_rows(stella):
    np.testing.assert_allclose(stella.encode(TEXTS, batch_size=1), stella.encode(TEXTS), atol=1e-5)


# --- prompts


def test_a_prompt_is_put_before_each_text(stella, monkeypatch):
    s2p, s2s = stella.prompts["s2p_query"], stella.prompts["s2s_query"]
    expected = {prompt: stella.encode([prompt + text for text in TEXTS]) for prompt in (s2p, s2s, "")}
    for found, prompt in (
        (stella.encode(TEXTS, prompt_name="s2p_query"), s2p),
        (stella.encode(TEXTS, prompt=s2s), s2s),
        (stella.encode(TEXTS, prompt_name="s2p_query", prompt=s2s), s2s),
        (stella.encode(TEXTS, prompt_name="s2p_query", prompt=""), ""),
        (stella.encode_query(TEXTS), s2p),
        (stella.encode_query(TEXTS, prompt_name="s2s_query"), s2s),
        (stella.encode_query(TEXTS, prompt=""), ""),
        (stella.encode_query(TEXTS, None, s2s), s2s),
        (stella.encode_document(TEXTS, None, s2s), s2s),
        (stella.encode_document(TEXTS), ""),
        (stella.encode_document(TEXTS, prompt_name="s2s_query"), s2s),
    ):
        np.testing.assert_array_equal(found, expected[prompt])


def opened(path, **changes) -> Stella:
    settings(**changes)(path)
    return Stella.from_pretrained(path, dtype="float32")


@pytest.mark.parametrize(
    ("changes", "plain", "query", "document"),
    [
        ({"prompts": {"query": "q: ", "s2p_query": "s: "}}, "", "q: ", ""),
        ({"prompts": {"query": "", "s2p_query": "s: "}}, "", "s: ", ""),
        ({"prompts": {"query": None, "document": ""}}, "", "", ""),
        ({"prompts": {"query": "q: ", "document": "d: "}}, "", "q: ", "d: "),
        ({"prompts": {"own": "o: "}, "default_prompt_name": "own"}, "o: ", "o: ", ""),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "query"}, "q: ", "q: ", ""),
        ({"prompts": {"query": ""}, "default_prompt_name": "query"}, "", "", ""),
        ({"prompts": {}}, "", "", ""),
        ({"prompts": None}, "", "", ""),
    ],
)
def test_which_prompt_is_the_default(checkpoint_copy, monkeypatch, changes, plain, query, document):
    model = opened(checkpoint_copy(), **changes)
    used = []
    monkeypatch.setattr(model, "tokenize", lambda texts, prompt="": used.append(prompt) or [])
    for method in (model.encode, model.encode_query, model.encode_document):
        method([])
    assert used == [plain, query, document]


def test_an_empty_prompt_can_be_named(checkpoint_copy):
    model = opened(checkpoint_copy(), prompts={"query": "q: ", "document": "", "other": None})
    assert model.prompts == {"query": "q: ", "document": "", "other": ""}
    assert model.resolve_prompt("document") == model.resolve_prompt("other") == ""


def test_prompts_can_not_be_changed_by_accident(stella):
    stella.prompts["s2p_query"] = "x"
    assert stella.resolve_prompt("s2p_query") != "x"


# --- lengths


def test_max_seq_length_cuts(stella):
    model = Stella.from_pretrained(GOLDENS / "stella", dtype="float32")
    assert model.max_seq_length == 64
    model.max_seq_length = 9
    cut = model.tokenize(["word " * 100, "a"])
    assert [len(tokens.ids) for tokens in cut] == [9, 3]
    np.testing.assert_array_equal(model.encode(["word " * 100]), stella.run_tokens(cut[:1]))
    model.max_seq_length = 512
    assert model.max_seq_length == 512
    for value in (513, 2, 0, -1):
        with pytest.raises(StellaError, match=f"max_seq_length {value} "):
            model.max_seq_length = value
    for value in ("64", None, 64.0, True):
        with pytest.raises(StellaError, match=r"max_seq_length .* must be a whole number"):
            setattr(model, "max_seq_length", value)  # noqa: B010 (no type of the attribute)
    assert model.max_seq_length == 512


def test_a_text_of_a_megabyte(stella):
    found = stella.encode(["x" * 2**20, "word " * 2**18])
    assert np.isfinite(found).all()


# --- what is refused


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (None, "sentences is None; pass a str or a list of str"),
        (5, "sentences is int 5"),
        (b"bytes", "sentences is bytes b'bytes'"),
        ({"a": 1}, "sentences is dict"),
        ({"a"}, "sentences is set"),
        ((text for text in "ab"), "sentences is generator"),
        (np.array("a"), "sentences is ndarray"),
        ([None], r"sentences\[0\] is None, not a text"),
        (["a", 5], r"sentences\[1\] is int 5, not a text"),
        (["a", b"b"], r"sentences\[1\] is bytes b'b', not a text"),
        ([["a", "b"]], r"sentences\[0\] is list"),
        ([("a", "b")], r"sentences\[0\] is tuple"),
        (np.array([["a"]]), r"sentences\[0\] is ndarray"),
        (np.array([1.5]), r"sentences\[0\] is float64"),
        (bytearray(b"a"), r"sentences\[0\] is int 97"),
        (["a", "\ud800"], r"sentences\[1\] holds a lone surrogate \(U\+D800 at character 0\)"),
        ("\ud800", r"sentences\[0\] holds a lone surrogate"),
    ],
)
def test_what_is_no_text(stella, sentences, message):
    with pytest.raises(StellaError, match=message):
        stella.encode(sentences)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_name": "query"}, "there is no prompt 'query'; this checkpoint has s2p_query and s2s_query"),
        ({"prompt_name": ["query"]}, r"there is no prompt \['query'\]"),
        ({"prompt_name": ""}, "there is no prompt ''"),
        ({"prompt": 5}, "prompt is int 5, not a text"),
        ({"prompt": "\ud800"}, "prompt holds a lone surrogate"),
        (
            {"output_value": "hidden"},
            "unsupported output_value 'hidden'; choose one of sentence_embedding and token_embeddings",
        ),
        ({"output_value": None}, "unsupported output_value None"),
        ({"precision": "int4"}, "unsupported precision 'int4'; choose one of float32, int8, uint8, binary and ubinary"),
        ({"precision": ["binary"]}, "unsupported precision .*binary"),
        ({"precision": "int8"}, "ranges: int8 and uint8 take them from two embeddings or more, not 1"),
        ({"truncate_dim": 0}, "truncate_dim 0 must be a whole number from 1 to 64"),
        ({"truncate_dim": 65}, "truncate_dim 65 must be"),
        ({"truncate_dim": -1}, "truncate_dim -1 must be"),
        ({"truncate_dim": "32"}, "truncate_dim '32' must be"),
        ({"truncate_dim": 32.0}, "truncate_dim 32.0 must be"),
        ({"batch_size": 0}, "batch_size 0 must be"),
        ({"batch_size": -3}, "batch_size -3 must be"),
        ({"batch_size": "8"}, "batch_size '8' must be"),
        ({"batch_size": 2.5}, "batch_size 2.5 must be"),
        ({"inputs": ["a"]}, "inputs is another name of sentences; pass one"),
        ({"device": "nowhere"}, "device 'nowhere': the model runs on cpu; .* mesh= "),
        ({"device": ["cpu", "cpu"]}, "device .* the model runs on cpu"),
        ({"pool": {"input": None}}, "pool: .* use the mesh="),
        ({"chunk_size": 100}, "chunk_size: .* use the mesh="),
    ],
)
def test_what_is_no_option(stella, options, message):
    with pytest.raises(StellaError, match=message):
        stella.encode(["a"], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "unsupported dtype 'float16'; choose float32 or bfloat16"),
        ({"dtype": ["float32"]}, "unsupported dtype"),
        ({"dim": 512}, "there is no head of dimension 512; this checkpoint has 32, 48, 64 and 128"),
        ({"dim": "64"}, "there is no head of dimension '64'"),
        ({"dim": 0}, "there is no head of dimension 0"),
        ({"dim": [32]}, r"there is no head of dimension \[32\]"),
        ({"dim": (32, 65)}, "there is no head of dimension 65"),
        ({"device": "cuda"}, "device 'cuda': the model runs on cpu; .* mesh= "),
        ({"truncate_dim": 65}, "truncate_dim 65 must be a whole number from 1 to 64"),
        ({"truncate_dim": 0}, "truncate_dim 0 must be"),
        ({"prompts": ["q: "]}, "prompts must map names to texts"),
        ({"prompts": {"q": "\ud800"}}, "prompt 'q' holds a lone surrogate"),
        (
            {"default_prompt_name": "q"},
            r"default_prompt_name 'q' is not one of its prompts \(s2p_query and s2s_query\)",
        ),
        ({"similarity_fn_name": "maxsim"}, "similarity_fn_name 'maxsim' is unknown; known are cosine, dot"),
    ],
)
def test_what_can_not_be_loaded(options, message):
    with pytest.raises(StellaError, match=message):
        Stella.from_pretrained(GOLDENS / "stella", **options)


@pytest.mark.parametrize("name", ["tiny", "NovaSearch/stella_en_400M_v5", GOLDENS / "stella"])
def test_a_name_in_place_of_a_checkpoint(name):
    as_theirs: Any = Stella
    with pytest.raises(StellaError, match=rf"use Stella\.from_pretrained\('{name}'\)"):
        as_theirs(name, trust_remote_code=True)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_texts_cannot_be_traced(stella, transform):
    def embedded(x):
        return x + stella.encode(["a"])[0, 0]

    with pytest.raises(StellaError, match="encode: called inside of a function that JAX transforms"):
        transform(embedded)(np.float32(1) if transform is not jax.vmap else np.ones(2, np.float32))


def test_tensors_without_torch(stella, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for options in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        with pytest.raises(StellaError, match="torch is not installed"):
            stella.encode(["a"], **options)
    assert stella.similarity(stella.encode(["a"]), stella.encode(["b"])).shape == (1, 1)


# --- what a sentence-transformers script passes by habit


def test_other_names_and_settings_that_change_nothing(stella):
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


def test_a_model_may_cut_its_embeddings():
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
    with pytest.raises(StellaError, match="truncate_dim 65 must be"):
        model.truncate_dim = 65


def test_a_callers_prompts_and_similarity():
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
    with pytest.raises(StellaError, match="similarity_fn_name 'maxsim' is unknown"):
        model.similarity_fn_name = "maxsim"


@pytest.mark.parametrize("prompts", [{"mine": "my "}, {"query": "q: "}])
def test_a_callers_prompts_and_similarity_are_saved(tmp_path, prompts):
    model = Stella.from_pretrained(GOLDENS / "stella", dtype="float32", prompts=prompts, similarity_fn_name="dot")
    model.save_pretrained(tmp_path / "saved")
    saved = Stella.from_pretrained(tmp_path / "saved", dtype="float32")
    assert saved.prompts == {"query": model.prompts["s2p_query"]} | model.prompts
    assert saved.similarity_fn_name == "dot"


# --- similarity


def test_similarity_is_the_checkpoints_own(checkpoint_copy, stella):
    a, b = stella.encode(TEXTS), stella.encode(TEXTS[:2])
    cosine = stella.similarity(a, b)
    assert (cosine.shape, cosine.dtype) == ((6, 2), np.float32)
    np.testing.assert_allclose(np.diag(cosine), 1, atol=1e-6)
    assert stella.similarity_pairwise(a, a).shape == (6,)
    manhattan = opened(checkpoint_copy(), similarity_fn_name="manhattan")
    np.testing.assert_allclose(manhattan.similarity(a, b)[2, 1], -np.abs(a[2] - b[1]).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", similarity.MATRIX)
def test_similarity_of_lists_one_vector_and_none(name):
    vector = [1.0, 2.0, 2.0]
    assert similarity.similarity(name, vector, [vector, vector]).shape == (1, 2)
    assert similarity.similarity(name, np.zeros((0, 3)), [vector]).shape == (0, 1)
    assert similarity.similarity(name, [vector], np.zeros((0, 3))).shape == (1, 0)
    assert similarity.similarity_pairwise(name, np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)
    assert similarity.similarity_pairwise(name, vector, vector).shape == (1,)


@pytest.mark.parametrize("name", similarity.MATRIX)
def test_vectors_that_do_not_go_together_are_refused(name):
    with pytest.raises(StellaError, match=r"\(2, 3\) and \(2, 4\)"):
        similarity.similarity(name, np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(StellaError, match=r"\(2, 3\) and \(3, 3\)"):
        similarity.similarity_pairwise(name, np.zeros((2, 3)), np.zeros((3, 3)))


def test_two_models_at_once_keep_apart(stella):
    """Nothing is shared between models of one shape but their compiled programs."""
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


def test_a_stream_of_groups_gives_each_its_embeddings(stella):
    """Empty groups too; a group may end before the one before it."""
    groups = [TEXTS[:1], [], TEXTS[1:], TEXTS[:2] * 9, []]
    found = dict(stella.runner.stream((stella.tokenize(texts) for texts in groups), stella.max_seq_length))
    assert sorted(found) == [0, 1, 2, 3, 4]
    for number, texts in enumerate(groups):
        np.testing.assert_array_equal(found[number][0], stella.encode(texts))
