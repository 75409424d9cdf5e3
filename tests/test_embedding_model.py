"""`EmbeddingModel` and its encoder give the same result under every JAX transform; parameters by name; `load`."""

import copy
import doctest
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embedding_models import CALLS, IDS, LENGTHS, NAMES, by_row, same
from flax import nnx
from jax.sharding import AxisType
from paths import GOLDENS

from stella_jax import EmbeddingModel, Stella, embedding_model, load
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.models.heads import Head, normalize, pool


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return load(GOLDENS / "stella")


@pytest.fixture(scope="module")
def expected(model: EmbeddingModel) -> np.ndarray:
    return np.asarray(model(IDS, LENGTHS))


@pytest.mark.parametrize("call", CALLS)
def test_closed_over(model: EmbeddingModel, expected: np.ndarray, call: str) -> None:
    same(CALLS[call](model)(IDS, LENGTHS), expected)


def test_encoder_in_jit(model: EmbeddingModel) -> None:
    hidden, states = model.encoder(IDS, LENGTHS)
    assert states.shape == (3, *hidden.shape)
    np.testing.assert_array_equal(states[-1], hidden)
    hidden, found = jax.jit(model.encoder)(IDS, LENGTHS)
    same(found, states, atol=2e-5)
    np.testing.assert_array_equal(hidden, found[-1])


@pytest.mark.parametrize("call", ["vmap", "jit of checkpoint of scan"])
def test_passed_as_an_argument(model: EmbeddingModel, expected: np.ndarray, call: str) -> None:
    """Inside the transform the model is a tree of tracers."""

    @jax.jit
    def run(model: EmbeddingModel) -> jax.Array:
        return CALLS[call](model)(IDS, LENGTHS)

    same(run(model), expected)


def test_every_way_into_jit_gives_the_same_bits(model: EmbeddingModel) -> None:
    graphdef, state = nnx.split(model)
    expected = jax.jit(lambda model: model(IDS, LENGTHS))(model)
    for found in (
        jax.jit(lambda state: nnx.merge(graphdef, state)(IDS, LENGTHS))(state),
        jax.jit(lambda g, s: nnx.merge(g, s)(IDS, LENGTHS), static_argnums=0)(graphdef, state),
        jax.jit(lambda params: model.with_params(params)(IDS, LENGTHS))(model.params()),
        nnx.jit(lambda model: model(IDS, LENGTHS))(model),
    ):
        np.testing.assert_array_equal(found, expected)


def test_passed_to_vmap_and_checkpoint(model: EmbeddingModel, expected: np.ndarray) -> None:
    rows = jax.vmap(lambda model, ids, lengths: by_row(model)(ids, lengths), in_axes=(None, 0, 0))
    same(rows(model, IDS, LENGTHS), expected)
    same(jax.checkpoint(lambda model, *batch: model(*batch))(model, IDS, LENGTHS), expected)


def test_vmap_over_models(model: EmbeddingModel, expected: np.ndarray) -> None:
    bias = model.params()["head/bias"]
    stacked = {"head/bias": jnp.stack([bias, bias + 1])}
    found = jax.vmap(lambda params: model.with_params(params)(IDS, LENGTHS))(stacked)
    same(found, np.stack([expected, expected + 1]))


def test_eval_shape(model: EmbeddingModel) -> None:
    batch = jax.ShapeDtypeStruct((5, 7), jnp.int32), jax.ShapeDtypeStruct((5,), jnp.int32)
    assert jax.eval_shape(model, *batch) == jax.ShapeDtypeStruct((5, 64), jnp.float32)
    assert jax.eval_shape(model.encoder, *batch)[0] == jax.ShapeDtypeStruct((5, 7, 64), jnp.float32)
    assert jax.eval_shape(lambda m: m(*batch_of_zeros()), model).shape == (2, 64)


def batch_of_zeros() -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((2, 4), jnp.int32), jnp.ones(2, jnp.int32)


@pytest.mark.parametrize("copied", [copy.deepcopy, nnx.clone])
def test_copies(
    model: EmbeddingModel, expected: np.ndarray, copied: Callable[[EmbeddingModel], EmbeddingModel]
) -> None:
    np.testing.assert_array_equal(copied(model)(IDS, LENGTHS), expected)


def test_padding_changes_no_bit_but_length_does(model: EmbeddingModel, expected: np.ndarray) -> None:
    real = np.arange(12) < LENGTHS[:, None]
    np.testing.assert_array_equal(model(jnp.where(real, IDS, 7), LENGTHS), expected)
    assert np.abs(np.asarray(model(IDS, np.minimum(LENGTHS + 1, 12)))[1:4] - expected[1:4]).max() > 0.1


def test_float32_products_have_the_highest_precision(model: EmbeddingModel) -> None:
    def total(params: dict[str, jax.Array]) -> jax.Array:
        return model.with_params(params).encoder(IDS, LENGTHS)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(total))(model.params()))
    assert program.count("dot_general[") > 10 and "precision=None" not in program
    half = str(jax.make_jaxpr(load(GOLDENS / "stella", dtype="bfloat16").encoder)(IDS, LENGTHS))
    assert "HIGHEST" not in half


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("stella", "float32"), ("stella", "bfloat16"), ("arctic-m-v2", "float32")],
)
def test_same_embeddings_as_stella(name: str, dtype: str) -> None:
    """Also with cls pooling, without a head, and with normalized embeddings."""
    stella, model = Stella.from_pretrained(GOLDENS / name, dtype=dtype), load(GOLDENS / name, dtype=dtype)
    texts = ["what is tea?", "A drink made of leaves.", "北京"]
    tokens = [text.ids for text in stella.tokenize(texts)]
    ids = np.array([[*row, *[stella.config.pad_token_id] * (16 - len(row))] for row in tokens], np.int32)
    found = np.asarray(jax.jit(model)(ids, np.array([len(row) for row in tokens], np.int32)))
    expected = stella.encode(texts)
    if dtype == "float32":
        same(found, expected)
    else:
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((found * expected).sum(axis=1) / norms).min() > 0.999


# --- parameters, heads, options


def test_params_by_name(model: EmbeddingModel, expected: np.ndarray) -> None:
    params = model.params()
    assert sorted(params) == NAMES
    assert params["head/kernel"].shape == (64, 64)
    again = model.with_params({name: jnp.array(leaf) for name, leaf in params.items()})
    np.testing.assert_array_equal(again(IDS, LENGTHS), expected)


def test_with_params_shares_all_other_arrays(model: EmbeddingModel, expected: np.ndarray) -> None:
    changed = model.with_params({"head/bias": model.params()["head/bias"] + 1})
    same(jax.jit(changed)(IDS, LENGTHS), expected + 1)
    for name, leaf in changed.params().items():
        assert (leaf is model.params()[name]) == (name != "head/bias"), name
    changed.encoder.embeddings.word.embedding[...] += 1
    np.testing.assert_array_equal(model(IDS, LENGTHS), expected)


def test_unknown_parameter_names(model: EmbeddingModel, refused) -> None:
    with refused("head/scale"):
        model.with_params({"head/scale": jnp.zeros(64), "head/bias": jnp.zeros(64)})


def test_more_heads_from_one_pass() -> None:
    stella = Stella.from_pretrained(GOLDENS / "stella", dim=(48, 128), dtype="float32")
    model = stella.model
    assert model.dims == (48, 128)
    assert set(model.params()) - set(NAMES) == {"more_heads/0/bias", "more_heads/0/kernel"}
    found = jax.jit(lambda m: m.embeddings(m.last_hidden(IDS, LENGTHS), LENGTHS))(model)
    for dim, embedding in zip((48, 128), found, strict=True):
        same(embedding, jax.jit(load(GOLDENS / "stella", dim=dim))(IDS, LENGTHS))
    same(jax.jit(model)(IDS, LENGTHS), found[0])


@pytest.mark.parametrize("name", ["gte-base-en", "arctic-m-v2"])
def test_models_without_a_head(name: str) -> None:
    model = load(GOLDENS / name)
    assert (model.head, model.heads, model.pooling) == (None, (None,), "cls")
    assert model.dims == (model.encoder.config.hidden_size,)
    assert not [path for path in model.params() if "head" in path]
    pooled = pool(model.encoder(IDS, LENGTHS)[0], jnp.asarray(LENGTHS), "cls")
    same(model(IDS, LENGTHS), normalize(pooled) if model.normalize else pooled)
    assert model.normalize == (name == "arctic-m-v2")


@pytest.mark.parametrize(
    ("dtype", "param_dtype"), [("bfloat16", "float32"), ("bfloat16", "bfloat16"), (None, "float32")]
)
def test_dtypes(dtype: str | None, param_dtype: str, expected: np.ndarray) -> None:
    model = load(GOLDENS / "stella", dtype=dtype, param_dtype=param_dtype)
    kept = {name: str(leaf.dtype) for name, leaf in model.params().items()}
    assert {kept[name] for name in NAMES if "norm" in name or "head" in name} == {"float32"}
    assert {kept[name] for name in NAMES if "norm" not in name and "head" not in name} == {param_dtype}
    assert str(model.encoder.dtype) == (dtype or "float32")
    found = np.asarray(jax.jit(model)(IDS, LENGTHS))
    assert found.dtype == np.float32
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mesh", 5),
        ("mesh", "data=99"),
        ("dtype", "float16"),
        ("param_dtype", "int8"),
        ("dim", 99),
        ("dim", (48, 65)),
        ("dim", "64"),
        ("dim", True),
        ("revision", "main"),
    ],
)
def test_invalid_arguments_of_load(option: str, value: Any, refused) -> None:
    with refused(option.removeprefix("param_")):
        load(GOLDENS / "stella", **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("mesh", jax.sharding.AbstractMesh((1, 1), ("data", "model"))), ("dtype", jnp.float16)],
    ids=["mesh", "dtype"],
)
def test_arguments_of_other_types(option: str, value: Any, refused) -> None:
    with refused(option, varies=True):
        load(GOLDENS / "stella", **{option: value})


@pytest.mark.parametrize("name", ["no such name", "nobody/no-such-model", "", GOLDENS / "nowhere", None, 7])
def test_unknown_checkpoints(name: Any, refused) -> None:
    with refused(str(name)):
        load(name)


def test_dim_of_a_checkpoint_without_heads(refused) -> None:
    with refused("dim = 32"):
        load(GOLDENS / "arctic-m-v2", dim=32)
    with refused("dim"):
        load("tiny", dim=())
    assert load(GOLDENS / "arctic-m-v2", dim=64).dims == (64,)


def test_explicit_axes(refused) -> None:
    with refused("mesh"):
        load(GOLDENS / "stella", mesh=jax.make_mesh((8, 1), ("data", "model"), axis_types=(AxisType.Explicit,) * 2))


def test_abstract_model_has_shapes_without_numbers() -> None:
    config = Checkpoint.open(GOLDENS / "stella").spec.config
    model = EmbeddingModel.abstract(config, [None], dtype="float32", param_dtype="bfloat16", pooling="mean")
    params = model.params()
    assert sorted(params) == [name for name in NAMES if not name.startswith("head/")]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in params.values())


@pytest.mark.parametrize(
    ("named", "pooling", "head"),
    [("pooling 'max'", "max", None), ("activation 'relu'", "mean", Head("h", 4, activation="relu"))],  # pyright: ignore[reportArgumentType]
)
def test_unsupported_pooling_or_activation(named: str, pooling: str, head: Head | None, refused) -> None:
    """Neither is taken for the default."""
    config = Checkpoint.open(GOLDENS / "stella").spec.config
    with refused(named):
        EmbeddingModel.abstract(config, [head], dtype="float32", param_dtype="float32", pooling=pooling)


def test_abstract_models_share_no_variables() -> None:
    config = Checkpoint.open(GOLDENS / "stella").spec.config
    options: dict[str, Any] = {"dtype": "float32", "param_dtype": "float32", "pooling": "mean"}
    one, other = (EmbeddingModel.abstract(config, [None], **options) for _ in range(2))
    variables = [dict(nnx.to_flat_state(nnx.state(model))) for model in (one, other)]
    assert variables[0].keys() == variables[1].keys()
    assert all(variables[0][path] is not variables[1][path] for path in variables[0])


def test_abstract_model_with_params(model: EmbeddingModel, expected: np.ndarray) -> None:
    """All parameters, or some of them, and the rest remain shapes."""
    spec = Checkpoint.open(GOLDENS / "stella").spec
    options: dict[str, Any] = {"dtype": "float32", "param_dtype": "float32", "pooling": "mean"}
    abstract = EmbeddingModel.abstract(spec.config, [spec.head(None)], **options)
    same(jax.jit(abstract.with_params(model.params()))(IDS, LENGTHS), expected)
    half = abstract.with_params({"head/bias": model.params()["head/bias"]}).params()
    assert isinstance(half["head/bias"], jax.Array) and isinstance(half["head/kernel"], jax.ShapeDtypeStruct)


def test_a_model_without_source_is_otherwise_the_same(model: EmbeddingModel) -> None:
    other, params = model.without_source(), model.params()
    assert (other.source, other.dropout_rate) == (None, 0.1)
    assert (other.pooling, other.normalize, other.dims) == (model.pooling, model.normalize, model.dims)
    assert all(leaf is params[name] for name, leaf in other.params().items())


@pytest.mark.slow
def test_docstring_example() -> None:
    assert doctest.testmod(embedding_model) == (0, 7)
