"""The step: the same trajectory however it is cut, laid out or padded, and what is frozen or drawn at random."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDENS
from train.optimizer import Optimizer
from train.params import load

from stella_jax.checkpoint import Checkpoint
from stella_jax.sharding import PARAM_SPECS, make_mesh
from train.batches import Batch
from train.losses import Loss
from train.step import Metrics, Settings, State, Trainer

TRIPLET, RANKING = Loss(), Loss("multiple_negatives_ranking", symmetric=True)
STEPS, ROWS = 5, 16
PLAIN = Settings(dropout=False)
pytestmark = pytest.mark.soak  # a program for every mesh and setting takes minutes to compile
ADAMW = Optimizer(learning_rate=1e-3, weight_decay=0.01)
CHECKPOINT = Checkpoint.open(GOLDENS / "stella")
LAYERS, HIDDEN, INTERMEDIATE = 3, 64, 128


@dataclass(frozen=True)
class Run:
    """A short training; everything has its simplest value."""

    loss: Loss = RANKING
    mesh: str | None = None
    fsdp: bool = False
    settings: Settings = PLAIN
    optimizer: Optimizer = ADAMW
    dtype: str = "float32"


DROPPED = Run(settings=Settings())


@pytest.fixture(scope="module", autouse=True)
def compiled_fast() -> Iterator[None]:
    """The same programs, quicker to compile than they then run: here that takes half of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@dataclass
class Made:
    """A trainer, kept so that its program is compiled once."""

    trainer: Trainer
    params: dict[str, np.ndarray]
    shardings: dict[str, Any]

    def start(self) -> State:
        return self.trainer.start(
            {name: jax.device_put(value, self.shardings[name]) for name, value in self.params.items()}
        )


@cache
def made(run: Run) -> Made:
    mesh = make_mesh(run.mesh)
    network, params = load(CHECKPOINT, mesh, dtype=run.dtype, fsdp=run.fsdp)
    trainer = Trainer(network, params, run.loss, run.optimizer, STEPS, mesh, run.settings)
    shardings = {name: leaf.sharding for name, leaf in params.items()}
    return Made(trainer, {name: np.asarray(leaf) for name, leaf in params.items()}, shardings)


def batch(step: int, padding: int = 0) -> Batch:
    """Random tokens, and rows of other tokens that weigh nothing."""
    rng = np.random.default_rng(step)
    ids = [rng.integers(5, 2048, (ROWS, 16)).astype(np.int32) for _ in range(3)]
    lengths = [rng.integers(2, 17, ROWS).astype(np.int32) for _ in range(3)]
    ids = tuple(np.concatenate([x, x[:padding] - 1]) for x in ids)
    lengths = tuple(np.concatenate([x, x[ROWS - padding :]]) for x in lengths)
    return Batch(ids, lengths, (np.arange(ROWS + padding) < ROWS).astype(np.float32))


def trained(run: Run, padding: int = 0) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The metrics of each step, and the parameters after the last."""
    state, log = made(run).start(), []
    for step in range(STEPS):
        state, metrics = made(run).trainer.step(state, batch(step, padding))
        log.append({name: float(value) for name, value in metrics.items()})
    return log, {name: np.asarray(value) for name, value in state.params.items()}


@cache
def trajectory(run: Run) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    return trained(run)


def first(run: Run) -> tuple[State, Metrics]:
    return made(run).trainer.step(made(run).start(), batch(0))


def assert_same(log: list[dict[str, float]], like: Run) -> None:
    """Losses and norms of every step, to 1e-5."""
    for found, expected in zip(log, trajectory(like)[0], strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_metrics_are_of_the_step_that_was_made() -> None:
    run = Run(TRIPLET)
    log, after = trajectory(run)
    assert log[0]["learning_rate"] == log[0]["update_norm"] == 0  # the warm-up starts at 0
    assert all(0 < step["active"] <= 1 and step["grad_norm"] > 0 and step["update_norm"] > 0 for step in log[1:])
    squares = sum(float((value.astype(np.float64) ** 2).sum()) for value in after.values())
    np.testing.assert_allclose(log[-1]["param_norm"], squares**0.5, rtol=1e-6)
    assert all((after[name] != value).any() for name, value in made(run).params.items())


@pytest.mark.parametrize(
    ("mesh", "fsdp"), [("data=8", False), ("data=4,model=2", False), ("data=8", True), ("data=4,model=2", True)]
)
def test_any_mesh_gives_the_trajectory_of_one_device(mesh, fsdp) -> None:
    """With the negatives of the whole batch."""
    assert_same(trajectory(Run(mesh=mesh, fsdp=fsdp))[0], Run())


def test_triplets_over_a_mesh() -> None:
    assert_same(trajectory(Run(TRIPLET, mesh="data=4,model=2"))[0], Run(TRIPLET))


@pytest.mark.parametrize("mesh", ["data=8", "data=4,model=2"])
def test_fsdp_splits_parameters_and_moments_and_gathers_layers_one_by_one(mesh: str) -> None:
    trainer, state = made(Run(mesh=mesh, fsdp=True)).trainer, made(Run(mesh=mesh, fsdp=True)).start()
    data, model = trainer.mesh.shape["data"], trainer.mesh.shape["model"]
    for tree in (state.params, *state.moments):
        for name, leaf in tree.items():
            split = data * model if name.removeprefix("encoder/") in PARAM_SPECS else data
            assert leaf.addressable_shards[0].data.size * split == leaf.size, name
    # The program of one device: its share of a stacked kernel comes in, and a layer of it is gathered at a time.
    text = trainer.lower(state, batch(0)).compile().as_text() or ""
    width = INTERMEDIATE // model
    assert re.search(rf"= f32\[{LAYERS},{HIDDEN // data},2,{width}\]\S* parameter\(", text)
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
    assert f"{HIDDEN},2,{width}" in gathered
    # Neither all layers at once, nor the batch's tokens or states: (ROWS, T, ...) or (3 * ROWS, T, ...).
    assert not [shape for shape in gathered if re.match(rf"{LAYERS},{HIDDEN},|{ROWS},16\b|{3 * ROWS},16\b", shape)]


@pytest.mark.parametrize(("loss", "mesh"), [(TRIPLET, None), (RANKING, "data=2")], ids=["triplet", "ranking"])
def test_accumulation_is_the_big_batch(loss, mesh) -> None:
    """For the ranking loss too, whose cached form this is: each row's negatives are those of all parts."""
    run = Run(loss, mesh=mesh, settings=Settings(dropout=False, accumulation=4))
    assert_same(trajectory(run)[0], Run(loss))


def test_columns_of_different_lengths_are_the_same_columns() -> None:
    whole = batch(0)
    short = whole._replace(lengths=(np.minimum(whole.lengths[0], 8), *whole.lengths[1:]))
    cut = short._replace(ids=(short.ids[0][:, :8], *short.ids[1:]))
    together, apart = (made(Run()).trainer.step(made(Run()).start(), each)[1] for each in (short, cut))
    for name, value in together.items():
        np.testing.assert_allclose(apart[name], value, rtol=1e-5, err_msg=name)


def test_padded_rows_change_nothing_not_even_what_is_drawn() -> None:
    assert_same(trained(DROPPED, padding=4)[0], DROPPED)


def test_dropout_does_not_depend_on_the_mesh() -> None:
    assert_same(trajectory(replace(DROPPED, mesh="data=8"))[0], DROPPED)


def test_recomputed_layers_draw_the_same() -> None:
    assert_same(trajectory(replace(DROPPED, settings=Settings(remat=True)))[0], DROPPED)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    log, params = trajectory(DROPPED)
    again, same = trained(DROPPED)
    assert again == log and all((same[name] == value).all() for name, value in params.items())
    other = first(replace(DROPPED, settings=Settings(seed=2)))[1]["loss"]
    assert len({float(other), log[0]["loss"], trajectory(Run())[0][0]["loss"]}) == 3


def test_dropout_differs_from_step_to_step() -> None:
    """The first update is made at a rate of 0, so the second step sees the same parameters."""
    state, one = first(DROPPED)
    _, two = made(DROPPED).trainer.step(state, batch(0))
    assert one["loss"] != two["loss"]


def test_what_is_frozen_keeps_its_bits_and_has_no_moments() -> None:
    freeze = ("encoder/embeddings/*", "encoder/layers/[01]/*")
    run = Run(optimizer=Optimizer(learning_rate=1e-3, weight_decay=0.1, freeze=freeze))
    _, after = trajectory(run)
    for name, before in made(run).params.items():
        same = after[name] == before
        if name.startswith("encoder/layers/"):
            assert same[:2].all() and not same[2].all()
        else:
            assert same.all() == name.startswith("encoder/embeddings/")
    assert not any(name.startswith("encoder/embeddings/") for name in made(run).start().moments.mean)


def test_the_head_alone() -> None:
    state, metrics = first(Run(optimizer=Optimizer(train_only=("head/*",))))
    assert set(state.moments.mean) == {"head/kernel", "head/bias"}
    everything = trajectory(Run())[0][0]
    np.testing.assert_allclose(metrics["loss"], everything["loss"], rtol=1e-6)
    assert 0 < metrics["grad_norm"] < everything["grad_norm"]


def test_bfloat16_is_for_computing_only() -> None:
    state, metrics = first(Run(dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.moments))} == {jnp.dtype("float32")}
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], trajectory(Run())[0][0][name], rtol=0.05)
