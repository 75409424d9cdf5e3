"""Six epochs on eleven triplets, step by step, against what two PyTorch stacks agree on."""

import json
from functools import cache, partial

import numpy as np
import pytest
from marks import nightly, slow
from paths import GOLDENS
from safetensors.numpy import load_file

from stella_jax import Stella, load
from stella_jax.models.new import NEW
from stella_jax.runner import Runner
from train import Batcher, StepConfig, losses, make_step, optimizers
from train.sections import OptimizerSection
from train.step import State

TRAINING_GOLDENS = GOLDENS / "stella-training"
EXPECTED = json.loads((TRAINING_GOLDENS / "expected.json").read_text())
TRIPLETS = [
    json.loads(line) for line in (GOLDENS.parent.parent / "examples/porsche_triplets.jsonl").read_text().splitlines()
]
COLUMNS = [[row[column] for row in TRIPLETS] for column in ("anchor", "positive", "negative")]
BATCH_SIZE, EPOCHS = 4, 6

LOSSES = {
    "triplet_euclidean": losses.triplet,
    "triplet_manhattan": partial(losses.triplet, distance="manhattan"),
    "triplet_cosine": partial(losses.triplet, distance="cosine", margin=0.5),
    "multiple_negatives_ranking": losses.multiple_negatives_ranking,
    "matryoshka_mnrl": losses.matryoshka(losses.multiple_negatives_ranking, (64, 32, 16)),
}

# Every loss trains here at night; test_losses.py compares their values and gradients.
every_loss = pytest.mark.parametrize(
    "name", [*slow("matryoshka_mnrl"), *nightly(*(name for name in LOSSES if name != "matryoshka_mnrl"))]
)

# Relative, and absolute near zero; PyTorch's two stacks are 1e-5 and 3e-6 apart.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


@cache
def trained(name: str) -> tuple[list[dict[str, float]], State]:
    """The metrics of each step, and the last state."""
    model = load(GOLDENS / "stella")
    batcher = Batcher.for_model(model, BATCH_SIZE).fit([COLUMNS], all_seen=True)
    per_epoch = [slice(i, i + BATCH_SIZE) for i in range(0, len(TRIPLETS), BATCH_SIZE)]
    steps = EPOCHS * len(per_epoch)
    optimizer = optimizers.from_recipe(OptimizerSection(learning_rate=2e-4), model.params(), steps, NEW)
    options = {"trainable": optimizer.trainable, "learning_rate": optimizer.learning_rate}
    state, step = make_step(model, LOSSES[name], optimizer.transformation, StepConfig(dropout=False), **options)
    log = []
    for number in range(steps):
        rows = per_epoch[number % len(per_epoch)]
        state, metrics = step(state, batcher([column[rows] for column in COLUMNS]))
        log.append({key: float(value) for key, value in metrics.items()})
    return log, state


@cache
def embedded(name: str | None = None) -> list[np.ndarray]:
    """Embeddings of the columns after the named training, or before any."""
    stella = Stella.from_pretrained(GOLDENS / "stella")
    model = stella.model.with_params(trained(name)[1].params) if name else stella.model
    runner = Runner(model, stella.mesh, stella.config.pad_token_id)
    streamed = runner.stream(map(stella.tokenize, COLUMNS), stella.max_seq_length)
    return [found[0] for _, found in sorted(streamed, key=lambda each: each[0])]


def accuracies(anchor: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> dict[str, float]:
    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    nearness = {
        "cosine": lambda a, b: (unit(a) * unit(b)).sum(-1),
        "dot": lambda a, b: (a * b).sum(-1),
        "euclidean": lambda a, b: -np.linalg.norm(a - b, axis=-1),
        "manhattan": lambda a, b: -np.abs(a - b).sum(-1),
    }
    return {name: float((near(anchor, positive) > near(anchor, negative)).mean()) for name, near in nearness.items()}


def test_the_settings_are_those_of_the_golden() -> None:
    assert EXPECTED["runs"].keys() == LOSSES.keys()
    assert (EXPECTED["settings"]["batch_size"], EXPECTED["settings"]["epochs"]) == (BATCH_SIZE, EPOCHS)


@every_loss
@pytest.mark.parametrize("metric", ["loss", "grad_norm"])
def test_the_first_ten_steps(name: str, metric: str) -> None:
    expected = [step[metric] for step in EXPECTED["runs"][name]["steps"]]
    found = [step[metric] for step in trained(name)[0]]
    assert len(found) == len(expected)
    np.testing.assert_allclose(found[:10], expected[:10], rtol=RELATIVE, atol=ABSOLUTE)


@every_loss
def test_learning_rates_to_float32(name: str) -> None:
    expected = np.array([step["learning_rate"] for step in EXPECTED["runs"][name]["steps"]], np.float32)
    assert np.array_equal(np.array([step["learning_rate"] for step in trained(name)[0]], np.float32), expected)


@every_loss
def test_embeddings_after_the_last_step(name: str) -> None:
    found, expected = embedded(name)[0], load_file(TRAINING_GOLDENS / f"{name}.safetensors")["anchor_embeddings"]
    if name in ("triplet_euclidean", "triplet_manhattan"):
        # A shift of all embeddings changes no distance: the head's bias has a gradient of rounding errors only, and
        # Adam makes steps of full size of them.
        found, expected = found - found.mean(axis=0), expected - expected.mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@every_loss
def test_accuracies_before_and_after(name: str) -> None:
    run = EXPECTED["runs"][name]
    for found, expected in ((embedded(), "evaluator_before"), (embedded(name), "evaluator_after")):
        for distance, accuracy in accuracies(*found).items():
            assert np.float32(accuracy) == np.float32(run[expected][f"t_{distance}_accuracy"])
