"""The training step: its metrics, the same trajectory however a batch is cut and padded, and what does not train."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import nightly
from steps import (
    ADAMW,
    DROPPED,
    HEAD,
    PLAIN,
    ROWS,
    STEPS,
    TOKENS,
    Run,
    assert_same,
    batch,
    careless,
    first,
    load,
    made,
    ranking,
    rows_of,
    start,
    trained,
    trajectory,
)

from stella_jax import EmbeddingModel
from train.losses import Loss, triplet
from train.step import State, StepConfig, make_step

# What a step is


def test_metrics_are_those_of_the_completed_step() -> None:
    log, after = trajectory(Run())
    assert all(0 < step["active"] <= 1 and step["grad_norm"] > 0 and step["update_norm"] > 0 for step in log)
    squares = sum(float((value.astype(np.float64) ** 2).sum()) for value in after.values())
    np.testing.assert_allclose(log[-1]["param_norm"], squares**0.5, rtol=1e-6)
    before = made(Run())[0].params()
    assert all((after[name] != value).any() for name, value in before.items())


def test_loss_and_gradient_are_those_of_the_model_alone() -> None:
    """A trace without decay is the gradient."""
    run = Run(optimizer=optax.trace(0.0), trainable=HEAD)
    (state, metrics), model = first(run), made(run)[0]
    texts = [[*map(int, text.split())] for column in rows_of(0)[0] for text in column]
    ids = np.array([text + [0] * (TOKENS - len(text)) for text in texts], np.int32)
    lengths = np.array([len(text) for text in texts], np.int32)

    @jax.value_and_grad
    def loss(head: Mapping[str, jax.Array]) -> jax.Array:
        embeddings = model.with_params(head)(jnp.asarray(ids), jnp.asarray(lengths))
        return triplet(tuple(jnp.split(embeddings, 3))).mean()

    value, gradient = jax.jit(loss)({name: model.params()[name] for name in HEAD})
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    for name, expected in gradient.items():
        np.testing.assert_allclose(state.opt_state.trace[name], expected, rtol=1e-4, atol=1e-6)


def test_a_step_donates_the_state_and_not_the_model() -> None:
    model, step = made(Run())
    state = start(Run())
    step(state, batch(0))
    assert all(leaf.is_deleted() for leaf in state.params.values())
    assert not any(leaf.is_deleted() for leaf in model.params().values())


@pytest.mark.nightly
def test_the_same_seed_and_step_give_the_same_bits() -> None:
    """Also where a state went through the host's memory."""
    log, params = trajectory(DROPPED)
    state, again = start(DROPPED), []
    for number in range(STEPS):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        state = jax.tree.map(jnp.copy, jax.device_put(jax.tree.map(np.array, state), shardings))
        state, metrics = made(DROPPED)[1](state, batch(number))
        again.append({name: float(value) for name, value in metrics.items()})
    assert again == log
    assert all(np.asarray(state.params[name]).tobytes() == value.tobytes() for name, value in params.items())


@pytest.mark.nightly
def test_dropout_depends_on_the_step() -> None:
    """The parameters do not change, and the losses differ."""
    run = replace(DROPPED, optimizer=optax.set_to_zero(), trainable=HEAD)
    state, losses = start(run), []
    for _ in range(2):
        state, metrics = made(run)[1](state, batch(0))
        losses.append(float(metrics["loss"]))
    assert len({*losses, trajectory(Run())[0][0]["loss"]}) == 3


@pytest.mark.slow
def test_the_learning_rate_metric() -> None:
    schedule = optax.linear_schedule(0.0, 1.0, 2)
    state, step = make_step(
        load(Run()), triplet, optax.sgd(schedule), PLAIN, trainable={"head/bias": True}, learning_rate=schedule
    )
    rates = []
    for number in range(3):
        state, metrics = step(state, batch(number))
        rates.append((float(metrics["learning_rate"]), float(metrics["update_norm"]) > 0))
    assert rates == [(0, False), (0.5, True), (1, True)]
    assert int(state.step) == 3


# However a batch is cut and padded


@pytest.mark.nightly
def test_accumulated_triplets_are_the_whole_batch() -> None:
    assert_same(trained(Run(), micro_batches=4)[0], Run())


def test_groups_by_length_are_the_whole_batch() -> None:
    assert len(batch(0, fit=True).ids) > 1
    assert_same(trained(Run(), fit=True)[0], Run())


@pytest.mark.parametrize("loss", [triplet, *nightly(ranking)])
def test_padding_rows_change_nothing(loss: Loss) -> None:
    short, filled = (first(Run(loss), rows=12, size=size)[1] for size in (12, ROWS))
    for name, value in short.items():
        np.testing.assert_allclose(filled[name], value, rtol=1e-5, err_msg=name)


def test_a_loss_that_counts_padding_rows(refused) -> None:
    step = made(Run(careless))[1]
    step.check(batch(0))
    with refused("'careless'"):
        step(start(Run(careless)), batch(0, rows=12))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2", *nightly(None)])
def test_accumulated_ranking_is_the_whole_batch(mesh) -> None:
    """Each row's negatives are those of all micro-batches (GradCache)."""
    assert_same(trained(Run(ranking, mesh), micro_batches=4)[0], Run(ranking))


@pytest.mark.nightly
def test_accumulated_ranking_draws_the_same_dropout_both_times() -> None:
    """A second pass with other masks would give no gradient of the loss: here it falls along it."""
    run = Run(ranking, config=StepConfig(), optimizer=optax.sgd(1e-6))
    state, before = first(run, micro_batches=4)
    again = State(jnp.zeros_like(state.step), state.params, state.opt_state)
    _, after = made(run)[1](again, batch(0, micro_batches=4))
    expected = 1e-6 * float(before["grad_norm"]) ** 2
    assert float(before["loss"] - after["loss"]) == pytest.approx(expected, rel=0.1)


@pytest.mark.nightly
def test_recomputed_layers_draw_the_same_dropout() -> None:
    assert_same(trajectory(replace(DROPPED, config=StepConfig(remat=True)))[0], DROPPED)


# What does not train


def with_zeros(model: EmbeddingModel) -> EmbeddingModel:
    """Every bias is -0."""
    params = model.params()
    return model.with_params({name: -0.0 * jnp.abs(leaf) for name, leaf in params.items() if name.endswith("bias")})


def test_frozen_parameters_keep_their_bits_and_have_no_state() -> None:
    """The embeddings, and two of three layers."""
    model = with_zeros(load(Run()))
    layers = np.array([False, False, True])
    trainable = {
        name: layers.reshape(-1, *[1] * (leaf.ndim - 1)) if name.startswith("encoder/layers/") else True
        for name, leaf in model.params().items()
        if not name.startswith("encoder/embeddings/")
    }
    state, step = make_step(model, triplet, optax.adamw(1e-3, weight_decay=0.1), PLAIN, trainable=trainable)
    assert state.opt_state[0].mu.keys() == trainable.keys()
    state, metrics = step(state, batch(0))
    for name, leaf in model.params().items():
        before, after = (np.asarray(array).view(np.uint32) for array in (leaf, state.params[name]))
        if name.startswith("encoder/layers/"):
            assert (after[:2] == before[:2]).all() and (after[2] != before[2]).any(), name
        else:
            assert (after == before).all() == name.startswith("encoder/embeddings/"), name
    moved = optax.tree.norm({name: state.params[name] - leaf for name, leaf in model.params().items()})
    np.testing.assert_allclose(metrics["update_norm"], moved, rtol=1e-4)


def test_the_head_alone_has_the_loss_of_all() -> None:
    state, metrics = first(Run(trainable=HEAD))
    assert {*state.opt_state[0].mu} == {*HEAD}
    everything = trajectory(Run())[0][0]
    np.testing.assert_allclose(metrics["loss"], everything["loss"], rtol=1e-6)
    assert 0 < metrics["grad_norm"] < everything["grad_norm"]


def test_trainable_names_that_are_not_parameters(refused) -> None:
    with refused("head/weight"):
        make_step(load(Run()), triplet, ADAMW, trainable={"head/weight": True})


@pytest.mark.nightly
def test_parameters_stay_float32_with_bfloat16_compute() -> None:
    state, metrics = first(Run(dtype="bfloat16"))
    moments = state.opt_state[0]
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, moments.mu, moments.nu))} == {jnp.dtype("float32")}
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], trajectory(Run())[0][0][name], rtol=0.05)


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        (("a model", triplet, ADAMW), {}, "model"),
        ((None, triplet, "adamw"), {}, "optimizer"),
        ((None, triplet, optax.adamw), {}, "optimizer"),
        ((None, triplet, ADAMW), {"trainable": ["head/kernel"]}, "trainable"),
        ((None, triplet, ADAMW), {"trainable": {}}, "trainable"),
        ((None, triplet, ADAMW), {"learning_rate": 1e-3}, "learning_rate"),
        ((None, "triplet", ADAMW), {}, "loss"),
        ((None, triplet, ADAMW, {"seed": 1}), {}, "config"),
        ((None, triplet, ADAMW), {"guide": "tiny"}, "guide"),
    ],
)
def test_arguments_of_a_wrong_type(arguments, options, name: str, refused) -> None:
    model, *others = arguments
    with refused(f"{name}: ", mask="<function.*>"):
        make_step(model or load(Run()), *others, **options)
