"""The training step: the same trajectory for any number of parts, mesh and padding, and any optax optimizer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import nightly, slow
from paths import GOLDENS

from stella_jax import EmbeddingModel, StellaError
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.models.new import NEW
from stella_jax.sharding import make_mesh
from train.batches import Batch, Batcher
from train.losses import Columns, Embeddings, Loss, multiple_negatives_ranking, triplet
from train.step import Metrics, State, Step, StepConfig, make_step

STEPS, ROWS, TOKENS = 4, 16, 16
PLAIN = StepConfig(dropout=False)
ADAMW = optax.adamw(1e-3, eps=1e-4, weight_decay=0.01)  # at 1e-8 the rounding of a tiny gradient is a whole step
CHECKPOINT = Checkpoint.open(GOLDENS / "stella")
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 3, 64, 128, 2048
HEAD = ("head/bias", "head/kernel")


def ranking(embeddings: Embeddings, columns: Columns) -> jax.Array:
    return multiple_negatives_ranking(
        embeddings, columns, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )


def own(embeddings: Embeddings, columns: Columns) -> jax.Array:
    """Of each row by itself, and of a further column."""
    anchor, positive, negative = embeddings
    return columns["score"] * jnp.sum(jnp.abs(anchor - positive), axis=1) / (1 + jnp.sum(negative**2, axis=1))


def careless(embeddings: Embeddings, columns: Columns) -> jax.Array:
    """Compares rows and ignores their weights."""
    scores = jnp.einsum("be,ce->bc", embeddings[0], embeddings[1])
    return jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)


@dataclass(frozen=True)
class Run:
    """A short training; everything has its simplest value."""

    loss: Loss = triplet
    mesh: str | None = None
    fsdp: bool = False
    config: StepConfig = PLAIN
    optimizer: optax.GradientTransformation = ADAMW
    trainable: tuple[str, ...] | None = None
    dtype: str = "float32"


DROPPED = Run(config=StepConfig())


@cache
def loaded(mesh: str | None, dtype: str, fsdp: bool) -> EmbeddingModel:
    return CHECKPOINT.load_model([CHECKPOINT.spec.head(None)], make_mesh(mesh), dtype=dtype, fsdp=fsdp)


def load(run: Run) -> EmbeddingModel:
    return loaded(run.mesh, run.dtype, run.fsdp)


@cache
def made(run: Run) -> tuple[EmbeddingModel, Step]:
    """Kept, so that each program is compiled once."""
    model = load(run)
    trainable = None if run.trainable is None else dict.fromkeys(run.trainable, True)
    return model, make_step(model, run.loss, run.optimizer, run.config, trainable=trainable)[1]


def start(run: Run) -> State:
    model, step = made(run)
    return step.init(jax.tree.map(jnp.copy, model.params()))


class Numbers:
    """The tokenizer of texts that are token ids."""

    max_length = TOKENS

    def encode(self, texts: Sequence[str], prompt: str = "") -> list[Any]:
        return [SimpleNamespace(ids=[*map(int, text.split())]) for text in texts]


def rows_of(step: int, rows: int = ROWS) -> tuple[list[list[str]], dict[str, np.ndarray]]:
    """Three columns of random texts, and one of numbers."""
    rng = np.random.default_rng(step)
    ids = [[rng.integers(5, VOCABULARY, rng.integers(2, TOKENS + 1)) for _ in range(ROWS)] for _ in range(3)]
    texts = [[" ".join(map(str, text)) for text in column[:rows]] for column in ids]
    return texts, {"score": rng.random(ROWS).astype(np.float32)[:rows]}


def batch(step: int, rows: int = ROWS, size: int = ROWS, parts: int = 1, devices: int = 1, fit: bool = False) -> Batch:
    tokenizer: Any = Numbers()
    batcher = Batcher(tokenizer, 0, size, parts=parts, devices=devices)
    batcher = batcher.fit([rows_of(step)[0] for step in range(STEPS)], all_seen=True) if fit else batcher
    return batcher(*rows_of(step, rows))


def trained(run: Run, **options: Any) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The metrics of each step, and the parameters after the last."""
    state, log = start(run), []
    for number in range(STEPS):
        state, metrics = made(run)[1](state, batch(number, **options))
        log.append({name: float(value) for name, value in metrics.items()})
    return log, {name: np.asarray(value) for name, value in state.params.items()}


@cache
def trajectory(run: Run) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    return trained(run)


def first(run: Run, **options: Any) -> tuple[State, Metrics]:
    return made(run)[1](start(run), batch(0, **options))


def assert_same(log: list[dict[str, float]], like: Run) -> None:
    """Losses and norms of every step, to 1e-5."""
    for found, expected in zip(log, trajectory(like)[0], strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


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
    assert_same(trained(Run(), parts=4)[0], Run())


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
    """Each row's negatives are those of all parts (GradCache)."""
    assert_same(trained(Run(ranking, mesh), parts=4)[0], Run(ranking))


@pytest.mark.nightly
def test_accumulated_ranking_draws_the_same_dropout_both_times() -> None:
    """A second pass with other masks would give no gradient of the loss: here it falls along it."""
    run = Run(ranking, config=StepConfig(), optimizer=optax.sgd(1e-6))
    state, before = first(run, parts=4)
    again = State(jnp.zeros_like(state.step), state.params, state.opt_state)
    _, after = made(run)[1](again, batch(0, parts=4))
    expected = 1e-6 * float(before["grad_norm"]) ** 2
    assert float(before["loss"] - after["loss"]) == pytest.approx(expected, rel=0.1)


@pytest.mark.nightly
def test_recomputed_layers_draw_the_same_dropout() -> None:
    assert_same(trajectory(replace(DROPPED, config=StepConfig(remat=True)))[0], DROPPED)


# Over a mesh


@pytest.mark.parametrize(
    "case",
    [
        *slow((ranking, "data=4,model=2", True)),
        *nightly(
            (triplet, "data=4,model=2", False),
            (triplet, "data=8", True),
            (ranking, "data=8", False),
            (own, "data=4,model=2", True),
        ),
    ],
)
def test_any_mesh_gives_the_trajectory_of_one_device(case) -> None:
    """With the negatives of the whole batch."""
    loss, mesh, fsdp = case
    assert_same(trajectory(Run(loss, mesh=mesh, fsdp=fsdp))[0], Run(loss))


@pytest.mark.nightly
def test_groups_over_a_mesh() -> None:
    run = Run(ranking, mesh="data=4,model=2", fsdp=True)
    assert len(batch(0, fit=True, devices=4).ids) > 1
    assert_same(trained(run, fit=True, devices=4)[0], Run(ranking))


@pytest.mark.nightly
def test_dropout_does_not_depend_on_the_mesh() -> None:
    assert_same(trajectory(replace(DROPPED, mesh="data=8"))[0], DROPPED)


def held_and_whole(leaf: jax.Array) -> tuple[int, int]:
    """The size of an array on one device, and on all."""
    return leaf.addressable_shards[0].data.size, leaf.size


def assert_split(run: Run, state: State) -> None:
    """Each device has its shard of the parameters and of optimizer state of their shapes."""
    step = made(run)[1]
    data, model = step.mesh.shape["data"], step.mesh.shape["model"]
    for name, leaf in state.params.items():
        split = data * model if name.removeprefix("encoder/") in NEW.specs else data
        assert leaf.addressable_shards[0].data.size * split == leaf.size, name
    held, whole = (sum(size) for size in zip(*map(held_and_whole, jax.tree.leaves(state.opt_state)), strict=True))
    assert held < whole / data + 0.05 * sum(leaf.size for leaf in state.params.values())


@pytest.mark.nightly
@pytest.mark.parametrize("mesh", ["data=8", "data=4,model=2"])
def test_fsdp_splits_parameters_and_moments_and_gathers_layers_one_by_one(mesh: str) -> None:
    run = Run(mesh=mesh, fsdp=True)
    _, step = made(run)
    state = start(run)
    assert_split(run, state)
    data, model = step.mesh.shape["data"], step.mesh.shape["model"]
    # The program of one device: its share of a stacked kernel comes in, and a layer of it is gathered at a time.
    text = step.lower(state, batch(0)).compile().as_text() or ""
    width = INTERMEDIATE // model
    assert re.search(rf"= f32\[{LAYERS},{HIDDEN // data},2,{width}\]\S* parameter\(", text)
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
    assert f"{HIDDEN},2,{width}" in gathered
    # Neither all layers at once, nor the tokens or states of all texts.
    assert not [shape for shape in gathered if re.match(rf"{LAYERS},{HIDDEN},|{3 * ROWS},{TOKENS}\b", shape)]
    assert_split(run, step(state, batch(0))[0])


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


# Optimizers

OPTIMIZERS: dict[str, Any] = {
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "adamw in bfloat16": optax.adamw(1e-2, mu_dtype=jnp.bfloat16),
    "lion": optax.lion(1e-3),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=16),
    "sgd": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "muon": optax.contrib.muon(1e-2),
    "multi_transform": optax.multi_transform(
        {"trained": optax.adam(1e-2), "frozen": optax.set_to_zero()},
        lambda params: {name: "trained" if name.endswith("kernel") else "frozen" for name in params},
    ),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 2),
    "add_noise": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.sgd(1e-2)),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-2),
    "reduce_on_plateau": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1)),
}


def assert_close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-3, atol=1e-6)


QUICK = ("adamw", "MultiSteps", "add_noise")


@pytest.mark.parametrize("name", [*QUICK, *nightly(*(name for name in OPTIMIZERS if name not in QUICK))])
def test_a_step_with_any_optimizer(name: str) -> None:
    """Two steps, beside what the optimizer makes of the same gradients by itself."""
    run = Run(optimizer=OPTIMIZERS[name], trainable=HEAD)
    gradients = Run(optimizer=optax.chain(optax.trace(0.0), optax.set_to_zero()), trainable=HEAD)
    optimizer, state = optax.with_extra_args_support(run.optimizer), start(run)
    params = {name: made(run)[0].params()[name] for name in HEAD}
    expected = jax.jit(optimizer.init)(params)

    @jax.jit
    def update(gradient: Any, state: Any, params: Any, loss: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    for number in range(2):
        here = start(gradients)._replace(params=jax.tree.map(jnp.copy, state.params))
        here, metrics = made(gradients)[1](here, batch(number))
        params, expected = update(here.opt_state[0].trace, expected, params, metrics["loss"])
        state, _ = made(run)[1](state, batch(number))
        assert_close({name: state.params[name] for name in HEAD}, params)
        assert_close(state.opt_state, expected)


# Moments of the parameters' shapes, of others, of one label's, those in a state with accumulated gradients, a key.
STATES = ("adamw", "adafactor", "multi_transform", "MultiSteps", "add_noise")


@pytest.mark.parametrize("name", [*STATES, *nightly(*(name for name in OPTIMIZERS if name not in STATES))])
def test_fsdp_splits_the_state_of_any_optimizer(name: str) -> None:
    run = Run(mesh="data=8", fsdp=True, optimizer=OPTIMIZERS[name])
    assert_split(run, start(run))


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        (("a model", triplet, ADAMW), {}, "model"),
        ((None, triplet, "adamw"), {}, "optimizer"),
        ((None, triplet, optax.adamw), {}, "optimizer"),
        ((None, triplet, ADAMW), {"trainable": ["head/kernel"]}, "trainable"),
        ((None, triplet, ADAMW), {"trainable": {}}, "trainable"),
        ((None, triplet, ADAMW), {"learning_rate": 1e-3}, "learning_rate"),
    ],
)
def test_arguments_of_a_wrong_type(arguments, options, name: str) -> None:
    model, *others = arguments
    with pytest.raises(StellaError, match=f"^{name}: "):
        make_step(model or load(Run()), *others, **options)
