"""Each built-in loss in a training step: in micro-batches, over a mesh, padded, and with a guide."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import nightly, slow
from paths import GOLDENS
from steps import ADAMW, PLAIN, TOKENS, VOCABULARY, Numbers

from stella_jax import EmbeddingModel
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.sharding import make_mesh
from train import losses
from train.batches import Batcher, TrainBatch
from train.losses.ranking import DIRECTIONS
from train.step import State, Step, make_step

CHECKPOINT = Checkpoint.open(GOLDENS / "stella")
HEAD = CHECKPOINT.spec.head(None)
ROWS, STEPS = 16, 2
HARDER: dict[str, Any] = {"hardness_mode": "all_negatives", "hardness_strength": 5.0}
DIMS = (CHECKPOINT.spec.default_dim or 0, 16)

# Columns of texts, further columns of so many numbers a row, and the loss.
LOSSES: dict[str, tuple[int, dict[str, tuple[int, ...]], Any]] = {
    "triplet": (3, {}, losses.triplet),
    "ranking": (4, {}, losses.multiple_negatives_ranking),
    "ranking-all": (4, {}, partial(losses.multiple_negatives_ranking, directions=DIRECTIONS, **HARDER)),
    "cosent": (2, {"score": ()}, losses.cosent),
    "margin_mse": (4, {"score": (3,)}, partial(losses.margin_mse, similarity="cosine")),
    "kl": (4, {"score": (3,)}, partial(losses.kl_distillation, similarity="cosine", temperature=0.5)),
    "gist": (3, {}, partial(losses.gist_embed, temperature=0.1)),
    "gist-matryoshka": (3, {}, losses.matryoshka(partial(losses.gist_embed, temperature=0.1), DIMS)),
    "stella": (1, {"teacher": (DIMS[0],)}, partial(losses.stella_distillation, matryoshka_dims=DIMS)),
}


def load(mesh: str | None = None, fsdp: bool = False) -> EmbeddingModel:
    return CHECKPOINT.load_model([HEAD], make_mesh(mesh), fsdp=fsdp)


def guide(mesh: str | None = None) -> EmbeddingModel:
    """The same encoder without its head, in half as large a scale: another model with the tokenizer of the first."""
    model = CHECKPOINT.load_model([None], make_mesh(mesh))
    return model.with_params({name: 0.5 * leaf for name, leaf in model.params().items() if "kernel" in name})


def batch(name: str, step: int, rows: int = ROWS, **options: Any) -> TrainBatch:
    texts, further, _ = LOSSES[name]
    tokenizer: Any = Numbers()
    rng = np.random.default_rng(step)
    made = [[rng.integers(5, VOCABULARY, rng.integers(2, TOKENS + 1)) for _ in range(ROWS)] for _ in range(texts)]
    columns = {key: rng.random((ROWS, *shape), np.float32) for key, shape in further.items()}
    batcher = Batcher(tokenizer, 0, ROWS, **options)
    return batcher(
        [[" ".join(map(str, text)) for text in column[:rows]] for column in made],
        {key: values[:rows] for key, values in columns.items()},
    )


def start(name: str, mesh: str | None = None, fsdp: bool = False, head_only: bool = False) -> tuple[State, Step]:
    model = load(mesh, fsdp)
    trainable: Any = dict.fromkeys(("head/kernel", "head/bias"), True) if head_only else None
    guided = guide(mesh) if name.startswith("gist") else None
    return make_step(model, LOSSES[name][2], ADAMW, PLAIN, trainable=trainable, guide=guided)


def log(
    name: str, steps: int = STEPS, rows: int = ROWS, micro_batches: int = 1, **options: Any
) -> list[dict[str, float]]:
    (state, step), found = start(name, **options), []
    for number in range(steps):
        state, metrics = step(state, batch(name, number, rows, micro_batches=micro_batches))
        found.append({key: float(value) for key, value in metrics.items()})
    return found


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for ours, like in zip(found, expected, strict=True):
        assert like["loss"] > 0 and like["grad_norm"] > 0
        for key, value in like.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    "name", [*slow("gist-matryoshka"), *nightly(*(name for name in LOSSES if name != "gist-matryoshka"))]
)
def test_micro_batches_and_eight_devices_are_the_whole_batch_on_one(name: str) -> None:
    assert_same(log(name, mesh="data=4,model=2", fsdp=True, micro_batches=2), log(name))


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{"micro_batches": 4}, {"mesh": "data=8"}], ids=["micro_batches", "devices"])
def test_micro_batches_or_devices_are_the_whole_batch(options: dict[str, Any]) -> None:
    assert_same(log("gist", **options), log("gist"))


@pytest.mark.parametrize("name", [*slow("ranking-all"), *nightly("gist", "stella")])
def test_micro_batches_and_devices_are_the_whole_batch(name: str) -> None:
    expected = log(name, steps=1, head_only=True)
    assert_same(log(name, steps=1, head_only=True, micro_batches=4, mesh="data=2"), expected)


@pytest.mark.parametrize("name", [*slow("gist"), *nightly(*(name for name in LOSSES if name != "gist"))])
def test_padding_rows_change_nothing(name: str) -> None:
    state, step = start(name, head_only=True)
    short = batch(name, 0, 12)
    whole = short._replace(weights=np.ones_like(short.weights))
    _, metrics = step(state, short)
    expected = log_of_rows(name, 12)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert abs(float(step(start(name, head_only=True)[0], whole)[1]["loss"]) - expected) > 1e-4  # else it shows nothing


def log_of_rows(name: str, rows: int) -> float:
    """The loss of the first rows, computed directly."""
    texts, _, loss = LOSSES[name]
    made = batch(name, 0, rows)
    micro_batch = jax.tree.map(lambda x: x[0][:rows] if x.ndim > 1 else x, made._replace(ids=(), lengths=(), tokens=()))
    places = np.asarray(made.places[0])[:rows]

    def vectors(model: EmbeddingModel) -> list[jax.Array]:
        found = model(jnp.asarray(made.ids[0][0]), jnp.asarray(made.lengths[0][0]))
        return [found[places[:, column]] for column in range(texts)]

    columns = dict(micro_batch.columns)
    if name.startswith("gist"):
        columns["guide"] = jnp.stack(vectors(guide()), axis=1)
    return float(loss(tuple(vectors(load())), columns).mean())


def test_a_guide_does_not_change_and_gets_no_gradient() -> None:
    model, guided = load(), guide()
    before = {name: np.array(leaf) for name, leaf in guided.params().items()}
    loss = partial(losses.gist_embed, temperature=0.1)
    state, step = make_step(model, loss, optax.sgd(1e-2), PLAIN, trainable={"head/kernel": True}, guide=guided)
    step(state, batch("gist", 0))
    assert all((np.asarray(leaf) == before[name]).all() for name, leaf in guided.params().items())
