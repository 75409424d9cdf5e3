"""Random checkpoints saved by transformers and sentence-transformers: our results against theirs."""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import split_encoder
from flax import nnx
from marks import slow
from paths import GOLDENS
from shapes import SHAPES

from stella_jax import Stella, similarity
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.config import Rope
from stella_jax.models.attention import rope_tables, rotate
from stella_jax.tokenizer.tokenizer import Tokens

pytestmark = pytest.mark.torch

MODULE = 1e-5  # of a module's largest number, float32 against float64
ENCODER = 1e-4  # absolute, whole float32 encoder against float64

BERT, UNIGRAM, BYTES = GOLDENS / "stella", GOLDENS / "arctic-m-v2", GOLDENS / "stella-qwen2"


@pytest.fixture(scope="module")
def random_checkpoint(torch_reference, tmp_path_factory):
    """Name of a shape -> (the model in float64, the directory that it was saved to)."""

    @cache
    def make(name: str):
        model = torch_reference.random_model(SHAPES[name])
        return torch_reference.exact(model), torch_reference.save(
            model, tmp_path_factory.mktemp(name), tokenizer_of(name)
        )

    return make


def tokenizer_of(name: str) -> Path:
    shape = SHAPES[name]
    return BYTES if shape.kv_heads else UNIGRAM if shape.pad_id else BERT


@pytest.fixture(params=SHAPES)
def checkpoint(request, random_checkpoint):
    return random_checkpoint(request.param)


def batch(pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded rows of very different lengths, a full one among them."""
    lengths = np.array([24, 1, 7, 16])
    ids = np.random.default_rng(0).integers(5, 2048, (4, 24))
    ids[np.arange(24) >= lengths[:, None]] = pad_id
    return ids, lengths


def mask_of(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return (np.arange(ids.shape[1]) < lengths[:, None]).astype(int)


def assert_close_to_scale(found, expected, name: str) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, rtol=0, atol=MODULE, err_msg=name)


@partial(jax.jit, static_argnames=("graphdef", "layer"))
def modules(graphdef, state, ids, lengths, x, layer: int) -> dict[str, jax.Array]:
    encoder = nnx.merge(graphdef, state)
    layers, stacked = nnx.split(encoder.layers)
    block = nnx.merge(layers, jax.tree.map(lambda leaf: leaf[layer], stacked))
    return {
        "embeddings": encoder.embeddings(ids),
        "attention": block.attention(x, lengths),
        "mlp": block.mlp(x),
        "layer": block(x, lengths),
        **({"norm": encoder.norm(x)} if encoder.norm else {}),
    }


@partial(jax.jit, static_argnames="graphdef")
def states(graphdef, state, ids, lengths) -> jax.Array:
    encoder = nnx.merge(graphdef, state)
    last, each = encoder(ids, lengths)
    return jnp.concatenate([encoder.embeddings(ids)[None], each[:-1], last[None]])


def test_module_by_module(checkpoint, torch_reference):
    exact, path = checkpoint
    ids, lengths = batch(exact.config.pad_token_id)
    mask = mask_of(ids, lengths)
    x = np.random.default_rng(1).standard_normal((*ids.shape, exact.config.hidden_size), dtype=np.float32)
    layer = exact.config.num_hidden_layers - 1
    expected = torch_reference.stages(exact, ids, mask, x, layer)
    found = modules(*split_encoder(path), ids, lengths, x, layer)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close_to_scale(np.asarray(value)[mask == 1], expected[name][mask == 1], name)


@pytest.mark.parametrize(
    ("theta", "factor", "head_dim"),
    [(160000.0, 2.0, 64), (500000.0, 2.0, 64), (20000.0, 8.0, 64), (160000.0, 1.0, 64), (1000000.0, 1.0, 128)],
    ids=lambda value: f"{value:g}",
)
def test_rope_tables_of_the_published_checkpoints_at_every_position(torch_reference, theta, factor, head_dim):
    """A frequency one float32 step away is off by 5e-4 at position 8192; equal roundings leave at most 5e-5."""
    rope = Rope(theta * factor, factor ** (2 / head_dim))
    cos, sin = torch_reference.rotary(rope.theta, rope.divisor, head_dim=head_dim, num_tokens=8192)
    for found, expected in zip(rope_tables(rope, 8192, head_dim), (cos, sin), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


def test_rotation(torch_reference):
    tables = rope_tables(Rope(160000.0), 12, 64)
    x = np.random.default_rng(2).standard_normal((2, 12, 3, 64), dtype=np.float32)
    assert_close_to_scale(rotate(jnp.asarray(x), *tables), torch_reference.rotated(x, *tables), "rotate")


def test_whole_encoder_on_a_right_padded_batch(checkpoint, torch_reference):
    exact, path = checkpoint
    ids, lengths = batch(exact.config.pad_token_id)
    mask = mask_of(ids, lengths)
    expected = torch_reference.hidden_states(exact, ids, mask)
    found = np.asarray(states(*split_encoder(path), ids, lengths))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, mask == 1], expected[:, mask == 1], rtol=0, atol=ENCODER)


def test_attention_is_peaked(checkpoint, torch_reference):
    """The comparison is sensitive only with peaked attention; uniform attention hides a wrong mask or rotation."""
    exact, _ = checkpoint
    ids, lengths = batch(exact.config.pad_token_id)
    with torch_reference.torch.no_grad():
        tensors = (torch_reference.torch.tensor(array) for array in (ids[:1], mask_of(ids, lengths)[:1]))
        attention = exact(*tensors, output_attentions=True).attentions[-1]
    assert attention.max(dim=-1).values.mean() > 0.4  # of 24 tokens, on one


# Bucket edges and one beyond, the shortest, and lengths at which attention runs in blocks.
@pytest.mark.parametrize("name", ["stella-like", "qwen2-like"])
@pytest.mark.parametrize("counts", [(1, 2, 8, 9), (512, 513), *slow((128, 129), (2100,))])
def test_lengths_through_the_buckets(random_checkpoint, torch_reference, name, counts):
    exact, path = random_checkpoint(name)
    rng = np.random.default_rng(3)
    tokens = [Tokens(rng.integers(5, 2048, count).tolist(), False) for count in counts]
    found = Stella.from_pretrained(path, dtype="float32").run_tokens(tokens)
    for text, embedding in zip(tokens, found, strict=True):
        ids = np.array([text.ids])
        expected = torch_reference.hidden_states(exact, ids, np.ones_like(ids))[-1, 0].mean(axis=0)
        np.testing.assert_allclose(embedding, expected, rtol=0, atol=ENCODER, err_msg=f"{len(text.ids)} tokens")


@pytest.mark.parametrize("name", ["stella-like", "qwen2-like"])
def test_sharded_save_equals_a_single_file(random_checkpoint, torch_reference, tmp_path, name):
    _, path = random_checkpoint(name)
    model = torch_reference.random_model(SHAPES[name])
    sharded = torch_reference.save(model, tmp_path, tokenizer_of(name), max_shard_size="300KB")
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 2
    assert not (sharded / "model.safetensors").exists()
    whole, parts = Checkpoint.open(path).weights, Checkpoint.open(sharded).weights
    assert parts.leaves.keys() == whole.leaves.keys()
    for leaf in whole.leaves:
        np.testing.assert_array_equal(parts.read(leaf), whole.read(leaf))


def test_save_of_the_class_for_generation_equals_the_bare_model(random_checkpoint, torch_reference, tmp_path):
    _, path = random_checkpoint("qwen2-like")
    model = torch_reference.as_causal(torch_reference.random_model(SHAPES["qwen2-like"]))
    bare, whole = Checkpoint.open(path).weights, Checkpoint.open(torch_reference.save(model, tmp_path, BYTES)).weights
    assert (bare.prefix, whole.prefix) == ("", "model.")
    assert whole.leaves.keys() - bare.leaves.keys() == {"passthrough/lm_head/weight"}
    for leaf in bare.leaves:
        np.testing.assert_array_equal(whole.read(leaf), bare.read(leaf))


@pytest.mark.parametrize(
    ("name", "dtype"), [("arctic-like", "float16"), ("arctic-like", "bfloat16"), ("qwen2-like", "bfloat16")]
)
def test_half_precision_files(random_checkpoint, torch_reference, tmp_path, name, dtype):
    model = torch_reference.random_model(SHAPES[name]).to(getattr(torch_reference.torch, dtype))
    path = torch_reference.save(model, tmp_path, tokenizer_of(name))
    opened = Checkpoint.open(path)
    assert {str(found) for found in opened.weights.dtypes.values()} == {dtype}
    ids, lengths = batch(model.config.pad_token_id)
    mask = mask_of(ids, lengths)
    expected = torch_reference.hidden_states(torch_reference.exact(model), ids, mask)
    found = np.asarray(states(*split_encoder(opened), ids, lengths))
    np.testing.assert_allclose(found[:, mask == 1], expected[:, mask == 1], rtol=0, atol=ENCODER)


TEXTS = [
    "a",
    "Green tea has been consumed for centuries.",
    "Café naïve ÜBER straße — 北京 快排算法介绍 🍵",
    "  leading and trailing   spaces\tand\nnewlines  ",
    "",
    "The 911 Speedster can accelerate from 0 to 100 km/h in just 3.8 seconds.",
    "word " * 100,
]
PROMPTS = {"query": "query: ", "s2p_query": "Instruct: Given a query, retrieve passages.\nQuery: "}
PIPELINES = {
    "dense-tanh-normalize": {"shape": "stella-like", "pooling": "mean", "dense": (24, "Tanh"), "normalize": True},
    "dense-identity": {"shape": "multilingual-like", "pooling": "cls", "dense": (64, "Identity"), "normalize": False},
    "no-dense-normalize": {"shape": "arctic-like", "pooling": "cls", "dense": None, "normalize": True},
    "qwen2": {"shape": "qwen2-like", "pooling": "lasttoken", "dense": (24, "Identity"), "normalize": True},
}


@pytest.fixture(scope="module")
def pipeline(torch_reference, random_checkpoint, tmp_path_factory):
    """Name of a pipeline -> (sentence-transformers' model, ours, loaded from its save)."""

    @cache
    def make(name: str):
        options = dict(PIPELINES[name])
        if options["dense"]:
            dim, activation = options["dense"]
            options["dense"] = (dim, getattr(torch_reference.nn, activation)())
        _, path = random_checkpoint(options.pop("shape"))
        theirs = torch_reference.sentence_transformer(path, prompts=PROMPTS, similarity_fn_name="manhattan", **options)
        theirs.max_seq_length = 64
        saved = tmp_path_factory.mktemp(name)
        theirs.save(str(saved))
        return theirs, Stella.from_pretrained(saved, dtype="float32")

    return make


@pytest.fixture
def one_bucket(monkeypatch):
    monkeypatch.setattr("stella_jax.batching.bucket_lengths", lambda longest: [longest])  # one compilation


@pytest.fixture(params=PIPELINES)
def both(request, pipeline, one_bucket):
    return pipeline(request.param)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt_name": "s2p_query"},
        {"prompt": "title: "},
        {"prompt": "title: ", "prompt_name": "query"},
        {"truncate_dim": 16},
        {"truncate_dim": 16, "normalize_embeddings": True},
        {"precision": "binary"},
        {"precision": "ubinary", "truncate_dim": 20},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_sentence_transformers_end_to_end(both, options):
    theirs, ours = both
    expected, found = theirs.encode(TEXTS, **options), ours.encode(TEXTS, **options)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    # Both are float32, at most ENCODER from the exact value, scaled to the size of the numbers.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("output_value", ["sentence_embedding", "token_embeddings"])
def test_sentence_transformers_levels(both, precision, output_value):
    """Float32 rounding may move a number to the next level, as at the maximum of a dimension."""
    theirs, ours = both
    expected, found = (model.encode(TEXTS, precision=precision, output_value=output_value) for model in (theirs, ours))
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.abs(a.astype(int) - b).max() <= 1


def test_sentence_transformers_queries_documents_and_single_texts(pipeline):
    theirs, ours = pipeline("dense-tanh-normalize")
    for method in ("encode", "encode_query", "encode_document"):
        expected, found = getattr(theirs, method)(TEXTS[1]), getattr(ours, method)(TEXTS[1])
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=method)


def test_sentence_transformers_token_embeddings(pipeline, one_bucket):
    theirs, ours = pipeline("dense-identity")
    expected = theirs.encode(TEXTS, output_value="token_embeddings")
    found = ours.encode(TEXTS, output_value="token_embeddings")
    for theirs_of_text, ours_of_text in zip(expected, found, strict=True):
        np.testing.assert_allclose(ours_of_text, theirs_of_text.numpy(), rtol=0, atol=ENCODER)


def test_sentence_transformers_own_similarity_and_limits(both):
    theirs, ours = both
    a, b = np.random.default_rng(4).standard_normal((2, 5, ours.dim), dtype=np.float32)
    np.testing.assert_allclose(ours.similarity(a, b[:3]), theirs.similarity(a, b[:3]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.similarity_pairwise(a, b), theirs.similarity_pairwise(a, b), rtol=1e-5, atol=1e-5)
    assert ours.max_seq_length == theirs.max_seq_length
    assert ours.dim == theirs.get_embedding_dimension()


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_functions(torch_reference, name):
    from sentence_transformers import SimilarityFunction

    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((4, 32), dtype=np.float32), rng.standard_normal((4, 32), dtype=np.float32)
    b[0], a[1] = a[0], 0  # an equal pair, and a zero vector
    matrix = SimilarityFunction.to_similarity_fn(name)
    pairwise = SimilarityFunction.to_similarity_pairwise_fn(name)
    np.testing.assert_allclose(similarity.similarity(name, a, b[:3]), matrix(a, b[:3]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(similarity.similarity(name, a[2], b[3]), matrix(a[2], b[3]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(similarity.similarity_pairwise(name, a, b), pairwise(a, b), rtol=1e-5, atol=1e-5)
