"""Short trainings by `make_step`, and comparisons of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from paths import GOLDENS

from stella_jax import EmbeddingModel
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.models.new import NEW
from stella_jax.sharding import make_mesh
from train.batches import Batcher, TrainBatch
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


def batch(
    step: int, rows: int = ROWS, size: int = ROWS, micro_batches: int = 1, devices: int = 1, fit: bool = False
) -> TrainBatch:
    tokenizer: Any = Numbers()
    batcher = Batcher(tokenizer, 0, size, micro_batches=micro_batches, devices=devices)
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
