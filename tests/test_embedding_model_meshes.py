"""`EmbeddingModel` and its gradients over meshes, and inside `jax.shard_map`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from embedding_models import CALLS, DIRECTION, IDS, LENGTHS, loss, named, same, with_params
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from marks import nightly
from paths import GOLDENS

from stella_jax import EmbeddingModel, load
from stella_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return load(GOLDENS / "stella")


@pytest.fixture(scope="module")
def expected(model: EmbeddingModel) -> np.ndarray:
    return np.asarray(model(IDS, LENGTHS))


@pytest.fixture(scope="module")
def gradient(model: EmbeddingModel) -> dict[str, np.ndarray]:
    return named(jax.grad(with_params(model))(model.params()))


MESHES = [*nightly("data=8"), "data=4,model=2"]


@pytest.fixture(scope="module", params=MESHES)
def meshed(request: pytest.FixtureRequest) -> tuple[Mesh, EmbeddingModel]:
    return make_mesh(request.param), load(GOLDENS / "stella", mesh=request.param)


@pytest.mark.parametrize("call", ["jit", "vmap", "jit of checkpoint of scan"])
def test_over_a_mesh(meshed: tuple[Mesh, EmbeddingModel], expected: np.ndarray, call: str) -> None:
    """Also if `data` does not divide the number of rows: one row, and batches of two."""
    mesh, model = meshed
    with jax.set_mesh(mesh):
        same(CALLS[call](model)(*jax.device_put((IDS, LENGTHS), P("data"))), expected)


def test_mesh_that_is_not_set(meshed: tuple[Mesh, EmbeddingModel], expected: np.ndarray) -> None:
    same(jax.jit(meshed[1])(IDS, LENGTHS), expected)


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


def test_in_a_shard_map(meshed: tuple[Mesh, EmbeddingModel], expected: np.ndarray) -> None:
    """Over all axes of the mesh, and over `data` only, where the compiler shards over `model`."""
    mesh, model = meshed
    with jax.set_mesh(mesh):
        same(over_rows(model, "data"), expected)
        same(over_rows(model, "data", axis_names={"data"}), expected)


def test_gradients_through_a_shard_map(meshed: tuple[Mesh, EmbeddingModel], gradient: dict[str, np.ndarray]) -> None:
    mesh, model = meshed

    def total(model: EmbeddingModel) -> jax.Array:
        return jnp.sum(over_rows(model, "data", check_vma=False) * DIRECTION)

    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(total))(model).params()
    for name, leaf in gradient.items():
        same(found[name], leaf, atol=2e-5 * np.abs(leaf).max() + 1e-5)


def test_mesh_with_other_axis_names(model: EmbeddingModel, expected: np.ndarray) -> None:
    """Parameters on a mesh with other axis names: rows stay on their devices."""
    mesh = Mesh(np.array(jax.devices()), ("batch",), axis_types=(AxisType.Auto,))
    model = model.with_params(jax.device_put(model.params(), NamedSharding(mesh, P())))
    with jax.set_mesh(mesh):
        run = jax.jit(model)
        batch = jax.device_put((IDS, LENGTHS), P("batch"))
        same(run(*batch), expected)
        assert run(*batch).sharding.spec == P("batch")
        assert "all-gather" not in (run.lower(*batch).compile().as_text() or "")
        same(over_rows(model, "batch"), expected)
