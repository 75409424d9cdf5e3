"""`EmbeddingModel` and its encoder under every transform of JAX, with one result; its parameters by name; `load`."""

import copy
import doctest
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from paths import GOLDENS

from stella_jax import EmbeddingModel, Stella, embedding_model, load
from stella_jax.checkpoint import Checkpoint
from stella_jax.heads import normalize, pool
from stella_jax.sharding import make_mesh

IDS: Any = np.random.default_rng(0).integers(5, 2048, (8, 12)).astype(np.int32)
LENGTHS: Any = np.array([12, 7, 3, 1, 12, 5, 9, 2], np.int32)
DIRECTION = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
NAMES = [
    "encoder/embeddings/norm/bias",
    "encoder/embeddings/norm/scale",
    "encoder/embeddings/token_type/embedding",
    "encoder/embeddings/word/embedding",
    "encoder/layers/attention/out/bias",
    "encoder/layers/attention/out/kernel",
    "encoder/layers/attention/qkv/bias",
    "encoder/layers/attention/qkv/kernel",
    "encoder/layers/attention_norm/bias",
    "encoder/layers/attention_norm/scale",
    "encoder/layers/mlp/down/bias",
    "encoder/layers/mlp/down/kernel",
    "encoder/layers/mlp/up_gate/kernel",
    "encoder/layers/mlp_norm/bias",
    "encoder/layers/mlp_norm/scale",
    "head/bias",
    "head/kernel",
]

Function = Callable[[Any, Any], jax.Array]  # (ids, lengths) -> embeddings


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return load(GOLDENS / "stella")


@pytest.fixture(scope="module")
def plain(model: EmbeddingModel) -> np.ndarray:
    return np.asarray(model(IDS, LENGTHS))


def same(found: Any, expected: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def by_row(function: Function) -> Function:
    return lambda ids, lengths: function(ids[None], lengths[None])[0]


def scanned(function: Function, ids: Any, lengths: Any) -> jax.Array:
    """Batches of two rows as the inputs of a scan."""
    batches = jnp.reshape(ids, (4, 2, 12)), jnp.reshape(lengths, (4, 2))
    return jnp.concatenate(jax.lax.scan(lambda carry, batch: (carry, function(*batch)), None, batches)[1])


# --- one result, however it is called


CALLS: dict[str, Callable[[Function], Function]] = {
    "jit": jax.jit,
    "vmap": lambda f: jax.vmap(by_row(f)),
    "map": lambda f: lambda ids, lengths: jax.lax.map(lambda row: by_row(f)(*row), (ids, lengths)),
    "scan": lambda f: partial(scanned, f),
    "checkpoint": jax.checkpoint,
    "jit of checkpoint of scan": lambda f: jax.jit(jax.checkpoint(partial(scanned, f))),
}


@pytest.mark.parametrize("call", CALLS)
def test_closed_over(model: EmbeddingModel, plain: np.ndarray, call: str) -> None:
    same(CALLS[call](model)(IDS, LENGTHS), plain)


@pytest.fixture(scope="module")
def states(model: EmbeddingModel) -> np.ndarray:
    hidden, states = model.encoder(IDS, LENGTHS)
    assert states.shape == (3, *hidden.shape)
    np.testing.assert_array_equal(states[-1], hidden)
    return np.asarray(states)


def test_encoder_in_jit(model: EmbeddingModel, states: np.ndarray) -> None:
    hidden, found = jax.jit(model.encoder)(IDS, LENGTHS)
    same(found, states, atol=2e-5)
    np.testing.assert_array_equal(hidden, found[-1])


@pytest.mark.parametrize("call", ["vmap", "scan", "checkpoint"])
def test_encoder_closed_over(model: EmbeddingModel, states: np.ndarray, call: str) -> None:
    same(CALLS[call](lambda ids, lengths: model.encoder(ids, lengths)[0])(IDS, LENGTHS), states[-1], atol=2e-5)


@pytest.mark.parametrize("call", ["vmap", "map", "jit of checkpoint of scan"])
def test_passed_as_an_argument(model: EmbeddingModel, plain: np.ndarray, call: str) -> None:
    """Under the transform it is a tree of tracers, with its results those of the module."""

    @jax.jit
    def run(model: EmbeddingModel) -> jax.Array:
        return CALLS[call](model)(IDS, LENGTHS)

    same(run(model), plain)


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


def test_passed_to_vmap_and_checkpoint(model: EmbeddingModel, plain: np.ndarray) -> None:
    rows = jax.vmap(lambda model, ids, lengths: by_row(model)(ids, lengths), in_axes=(None, 0, 0))
    same(rows(model, IDS, LENGTHS), plain)
    same(jax.checkpoint(lambda model, *batch: model(*batch))(model, IDS, LENGTHS), plain)


def test_vmap_over_models(model: EmbeddingModel, plain: np.ndarray) -> None:
    bias = model.params()["head/bias"]
    stacked = {"head/bias": jnp.stack([bias, bias + 1])}
    found = jax.vmap(lambda params: model.with_params(params)(IDS, LENGTHS))(stacked)
    same(found, np.stack([plain, plain + 1]))


def test_eval_shape(model: EmbeddingModel) -> None:
    batch = jax.ShapeDtypeStruct((5, 7), jnp.int32), jax.ShapeDtypeStruct((5,), jnp.int32)
    assert jax.eval_shape(model, *batch) == jax.ShapeDtypeStruct((5, 64), jnp.float32)
    assert jax.eval_shape(model.encoder, *batch)[0] == jax.ShapeDtypeStruct((5, 7, 64), jnp.float32)
    assert jax.eval_shape(lambda m: m(*batch_of_zeros()), model).shape == (2, 64)


def batch_of_zeros() -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((2, 4), jnp.int32), jnp.ones(2, jnp.int32)


@pytest.mark.parametrize("copied", [copy.deepcopy, nnx.clone])
def test_copies(model: EmbeddingModel, plain: np.ndarray, copied: Callable[[EmbeddingModel], EmbeddingModel]) -> None:
    np.testing.assert_array_equal(copied(model)(IDS, LENGTHS), plain)


def test_padding_changes_no_bit_but_length_does(model: EmbeddingModel, plain: np.ndarray) -> None:
    real = np.arange(12) < LENGTHS[:, None]
    np.testing.assert_array_equal(model(jnp.where(real, IDS, 7), LENGTHS), plain)
    assert np.abs(np.asarray(model(IDS, np.minimum(LENGTHS + 1, 12)))[1:4] - plain[1:4]).max() > 0.1


def test_float32_products_have_the_highest_precision(model: EmbeddingModel) -> None:
    def total(params: dict[str, jax.Array]) -> jax.Array:
        return model.with_params(params).encoder(IDS, LENGTHS)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(total))(model.params()))
    assert program.count("dot_general[") > 10 and "precision=None" not in program
    half = str(jax.make_jaxpr(load(GOLDENS / "stella", dtype="bfloat16").encoder)(IDS, LENGTHS))
    assert "HIGHEST" not in half


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("stella", "float32"), ("stella", "bfloat16"), ("gte-multilingual", "float32"), ("arctic-m-v2", "float32")],
)
def test_same_embeddings_as_stella(name: str, dtype: str) -> None:
    """Also where the pooling is cls, there is no head, and embeddings are normalised."""
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


# --- gradients


def loss(model: Function) -> jax.Array:
    return jnp.sum(model(IDS, LENGTHS) * DIRECTION)


def with_params(model: EmbeddingModel) -> Callable[[dict[str, jax.Array]], jax.Array]:
    return lambda params: loss(model.with_params(params))


def split_gradient(model: EmbeddingModel) -> EmbeddingModel:
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.grad(lambda state: loss(nnx.merge(graphdef, state)))(state))


@jax.jit
def scanned_gradient(model: EmbeddingModel) -> dict[str, jax.Array]:
    return jax.grad(lambda params: loss(partial(scanned, model.with_params(params))))(model.params())


GRADIENTS: dict[str, Callable[[EmbeddingModel], Any]] = {
    "value_and_grad by name": jax.jit(lambda model: jax.value_and_grad(with_params(model))(model.params())[1]),
    "of the split state": jax.jit(split_gradient),
    "of the module": jax.jit(jax.grad(loss)),
    "of nnx": lambda model: nnx.jit(nnx.value_and_grad(loss))(model)[1],
    "checkpoint of a closure": jax.jit(
        lambda model: jax.grad(lambda p: loss(jax.checkpoint(model.with_params(p))))(model.params())
    ),
    "checkpoint of an argument": jax.jit(jax.grad(jax.checkpoint(loss))),
    "with a policy": jax.jit(
        jax.grad(lambda model: loss(partial(model, remat_policy=jax.checkpoint_policies.nothing_saveable)))
    ),
    "of a scan": scanned_gradient,
    "of each row, summed": jax.jit(
        lambda model: jax.tree.map(
            lambda x: x.sum(axis=0),
            jax.vmap(jax.grad(lambda p, i, n, d: by_row(model.with_params(p))(i, n) @ d), in_axes=(None, 0, 0, 0))(
                model.params(), IDS, LENGTHS, DIRECTION
            ),
        )
    ),
}


def named(gradient: Any) -> dict[str, np.ndarray]:
    if isinstance(gradient, nnx.State):
        gradient = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(gradient)}
    params = gradient.params() if isinstance(gradient, EmbeddingModel) else gradient
    return {name: np.asarray(leaf) for name, leaf in params.items()}


@pytest.fixture(scope="module")
def gradient(model: EmbeddingModel) -> dict[str, np.ndarray]:
    return named(jax.grad(with_params(model))(model.params()))


@pytest.mark.parametrize("form", GRADIENTS)
def test_all_gradients_agree(model: EmbeddingModel, gradient: dict[str, np.ndarray], form: str) -> None:
    found = named(GRADIENTS[form](model))
    assert sorted(found) == NAMES
    for name, leaf in gradient.items():
        same(found[name], leaf, atol=2e-5 * np.abs(leaf).max() + 1e-5)


@pytest.mark.parametrize("name", ["encoder/layers/mlp/up_gate/kernel", "encoder/embeddings/norm/scale", "head/kernel"])
def test_gradient_is_the_slope(model: EmbeddingModel, gradient: dict[str, np.ndarray], name: str) -> None:
    """Along a direction between a random one and its own, so that the slope is far above rounding."""
    leaf = model.params()[name]
    parts = (np.random.default_rng(2).normal(size=leaf.shape).astype(np.float32), gradient[name])
    direction = sum(part / np.linalg.norm(part) for part in parts)
    along = jax.jit(lambda step: loss(model.with_params({name: leaf + step * direction})))
    slope = (along(2e-3) - along(-2e-3)) / 4e-3
    assert slope > 1
    assert slope == pytest.approx((gradient[name] * direction).sum(), rel=2e-2)


def test_gradient_of_the_input_embeddings(model: EmbeddingModel) -> None:
    """A perturbation (B, T, D) of the embedded tokens: none comes from the padding."""

    def perturbed(change: jax.Array) -> jax.Array:
        changed: Any = nnx.clone(model)
        embed = changed.encoder.embeddings
        changed.encoder.embeddings = Perturbed(embed, change)
        return loss(changed)

    zero = jnp.zeros((8, 12, 64))
    found = np.asarray(jax.jit(jax.grad(perturbed))(zero))
    real = np.arange(12) < LENGTHS[:, None]
    assert (found[~real] == 0).all() and (np.abs(found[real]).max(axis=1) > 0).all()
    direction = np.random.default_rng(3).normal(size=zero.shape).astype(np.float32) / 100
    run = jax.jit(perturbed)
    slope = (run(zero + 5e-2 * direction) - run(zero - 5e-2 * direction)) / 0.1
    assert slope == pytest.approx((found * direction).sum(), rel=2e-2)


class Perturbed(nnx.Module):
    def __init__(self, embeddings: Any, change: jax.Array):
        self.embeddings, self.change = embeddings, nnx.data(change)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.embeddings(ids) + self.change


def test_nnx_optimizer(model: EmbeddingModel, gradient: dict[str, np.ndarray]) -> None:
    trained = nnx.clone(model)
    optimizer = nnx.Optimizer(trained, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model: EmbeddingModel, optimizer: nnx.Optimizer) -> None:
        optimizer.update(model, nnx.grad(loss)(model))

    step(trained, optimizer)
    for name, leaf in trained.params().items():
        same(leaf, model.params()[name] - 0.1 * gradient[name], atol=2e-5 * np.abs(gradient[name]).max() + 1e-5)


# --- over a mesh


MESHES = ["data=8", "data=4,model=2"]


@pytest.fixture(scope="module", params=MESHES)
def meshed(request: pytest.FixtureRequest) -> tuple[Mesh, EmbeddingModel]:
    return make_mesh(request.param), load(GOLDENS / "stella", mesh=request.param)


@pytest.mark.parametrize("call", ["jit", "vmap", "jit of checkpoint of scan"])
def test_over_a_mesh(meshed: tuple[Mesh, EmbeddingModel], plain: np.ndarray, call: str) -> None:
    """Also for rows that `data` does not divide: one, and batches of two."""
    mesh, model = meshed
    with jax.set_mesh(mesh):
        same(CALLS[call](model)(*jax.device_put((IDS, LENGTHS), P("data"))), plain)


def test_mesh_that_is_not_set(meshed: tuple[Mesh, EmbeddingModel], plain: np.ndarray) -> None:
    same(jax.jit(meshed[1])(IDS, LENGTHS), plain)


def test_gradients_over_a_mesh(meshed: tuple[Mesh, EmbeddingModel], gradient: dict[str, np.ndarray]) -> None:
    mesh, model = meshed
    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(loss))(model).params()
    for name, leaf in gradient.items():
        same(found[name], leaf, atol=2e-5 * np.abs(leaf).max() + 1e-5)


def over_rows(model: EmbeddingModel, axis: str, **options: Any) -> jax.Array:
    rows = P(axis)
    batch = jax.device_put((IDS, LENGTHS), rows)
    run = jax.shard_map(lambda model, *batch: model(*batch), in_specs=(P(), rows, rows), out_specs=rows, **options)
    return jax.jit(run)(model, *batch)


def test_in_a_shard_map(meshed: tuple[Mesh, EmbeddingModel], plain: np.ndarray) -> None:
    """Over all axes of the mesh, and over `data` alone, where `model` is still the compiler's."""
    mesh, model = meshed
    with jax.set_mesh(mesh):
        same(over_rows(model, "data"), plain)
        same(over_rows(model, "data", axis_names={"data"}), plain)


def test_gradients_through_a_shard_map(meshed: tuple[Mesh, EmbeddingModel], gradient: dict[str, np.ndarray]) -> None:
    mesh, model = meshed

    def total(model: EmbeddingModel) -> jax.Array:
        return jnp.sum(over_rows(model, "data", check_vma=False) * DIRECTION)

    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(total))(model).params()
    for name, leaf in gradient.items():
        same(found[name], leaf, atol=2e-5 * np.abs(leaf).max() + 1e-5)


def test_mesh_with_other_axis_names(model: EmbeddingModel, plain: np.ndarray) -> None:
    """Parameters put on a mesh of one's own: rows stay where they are."""
    mesh = Mesh(np.array(jax.devices()), ("batch",), axis_types=(AxisType.Auto,))
    model = model.with_params(jax.device_put(model.params(), NamedSharding(mesh, P())))
    with jax.set_mesh(mesh):
        run = jax.jit(model)
        batch = jax.device_put((IDS, LENGTHS), P("batch"))
        same(run(*batch), plain)
        assert run(*batch).sharding.spec == P("batch")
        assert "all-gather" not in (run.lower(*batch).compile().as_text() or "")
        same(over_rows(model, "batch"), plain)


# --- parameters, heads, options


def test_params_by_name(model: EmbeddingModel, plain: np.ndarray) -> None:
    params = model.params()
    assert sorted(params) == NAMES
    assert params["head/kernel"].shape == (64, 64)
    again = model.with_params({name: jnp.array(leaf) for name, leaf in params.items()})
    np.testing.assert_array_equal(again(IDS, LENGTHS), plain)


def test_with_params_shares_all_other_arrays(model: EmbeddingModel, plain: np.ndarray) -> None:
    changed = model.with_params({"head/bias": model.params()["head/bias"] + 1})
    same(jax.jit(changed)(IDS, LENGTHS), plain + 1)
    for name, leaf in changed.params().items():
        assert (leaf is model.params()[name]) == (name != "head/bias"), name
    changed.encoder.embeddings.word.embedding[...] += 1
    np.testing.assert_array_equal(model(IDS, LENGTHS), plain)


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
def test_dtypes(dtype: str | None, param_dtype: str, plain: np.ndarray) -> None:
    model = load(GOLDENS / "stella", dtype=dtype, param_dtype=param_dtype)
    kept = {name: str(leaf.dtype) for name, leaf in model.params().items()}
    assert {kept[name] for name in NAMES if "norm" in name or "head" in name} == {"float32"}
    assert {kept[name] for name in NAMES if "norm" not in name and "head" not in name} == {param_dtype}
    assert str(model.encoder.dtype) == (dtype or "float32")
    found = np.asarray(jax.jit(model)(IDS, LENGTHS))
    assert found.dtype == np.float32
    cosines = (found * plain).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(plain, axis=1)
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


def test_abstract_model_with_params(model: EmbeddingModel, plain: np.ndarray) -> None:
    """All of them, or those without which the rest stays a shape."""
    spec = Checkpoint.open(GOLDENS / "stella").spec
    options: dict[str, Any] = {"dtype": "float32", "param_dtype": "float32", "pooling": "mean"}
    abstract = EmbeddingModel.abstract(spec.config, [spec.head(None)], **options)
    same(jax.jit(abstract.with_params(model.params()))(IDS, LENGTHS), plain)
    half = abstract.with_params({"head/bias": model.params()["head/bias"]}).params()
    assert isinstance(half["head/bias"], jax.Array) and isinstance(half["head/kernel"], jax.ShapeDtypeStruct)


def test_docstring_example() -> None:
    assert doctest.testmod(embedding_model) == (0, 7)
