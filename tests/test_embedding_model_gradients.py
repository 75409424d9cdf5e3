"""Gradients of `EmbeddingModel`: equal under every transform and over meshes, and equal to slopes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from embedding_models import DIRECTION, IDS, LENGTHS, NAMES, by_row, loss, named, same, scanned, with_params
from flax import nnx
from marks import nightly
from paths import GOLDENS

from stella_jax import EmbeddingModel, load


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return load(GOLDENS / "stella")


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


@pytest.fixture(scope="module")
def gradient(model: EmbeddingModel) -> dict[str, np.ndarray]:
    return named(jax.grad(with_params(model))(model.params()))


QUICK = ("of nnx", "of a scan")


@pytest.mark.parametrize("form", [*QUICK, *nightly(*(form for form in GRADIENTS if form not in QUICK))])
def test_all_gradients_agree(model: EmbeddingModel, gradient: dict[str, np.ndarray], form: str) -> None:
    found = named(GRADIENTS[form](model))
    assert sorted(found) == NAMES
    for name, leaf in gradient.items():
        same(found[name], leaf, atol=2e-5 * np.abs(leaf).max() + 1e-5)


def test_gradient_is_the_slope(model: EmbeddingModel, gradient: dict[str, np.ndarray]) -> None:
    """In a direction between a random one and the gradient's, so that the slope is far above rounding."""
    rng, directions = np.random.default_rng(2), {}
    for name in ("encoder/layers/mlp/up_gate/kernel", "encoder/embeddings/norm/scale", "head/kernel"):
        parts = rng.normal(size=gradient[name].shape).astype(np.float32), gradient[name]
        directions[name] = sum(part / np.linalg.norm(part) for part in parts)

    @jax.jit
    def along(steps: dict[str, float]) -> jax.Array:
        moved = {name: model.params()[name] + step * directions[name] for name, step in steps.items()}
        return loss(model.with_params(moved))

    none = dict.fromkeys(directions, 0.0)
    for name, direction in directions.items():
        slope = (along(none | {name: 2e-3}) - along(none | {name: -2e-3})) / 4e-3
        assert slope > 1
        assert slope == pytest.approx((gradient[name] * direction).sum(), rel=2e-2), name


def test_gradient_of_the_input_embeddings(model: EmbeddingModel) -> None:
    """The gradient of a perturbation (B, T, D) of the embedded tokens is 0 in the padding."""

    def perturbed(change: jax.Array) -> jax.Array:
        changed: Any = nnx.clone(model)
        embed = changed.encoder.embeddings
        changed.encoder.embeddings = Perturbed(embed, change)
        return loss(changed)

    zero = jnp.zeros((8, 12, 64))
    run = jax.jit(jax.value_and_grad(perturbed))
    found = np.asarray(run(zero)[1])
    real = np.arange(12) < LENGTHS[:, None]
    assert (found[~real] == 0).all() and (np.abs(found[real]).max(axis=1) > 0).all()
    direction = np.random.default_rng(3).normal(size=zero.shape).astype(np.float32) / 100
    slope = (run(zero + 5e-2 * direction)[0] - run(zero - 5e-2 * direction)[0]) / 0.1
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
