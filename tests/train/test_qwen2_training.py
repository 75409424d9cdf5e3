"""Training of a Qwen2 encoder: gradients of transformers' own class, and the same steps over any mesh."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import nightly
from paths import GOLDENS
from shapes import SHAPES

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.sharding import make_mesh
from train import Batcher, StepConfig, losses, make_step

SHAPE = SHAPES["qwen2-like"]
MARGIN = 5.0
LENGTHS = np.array([12, 5, 9, 1, 7, 12])  # of two anchors, two positives, two negatives
IDS = np.random.default_rng(0).integers(5, 1500, (6, 12))


@pytest.fixture(scope="module")
def checkpoint(torch_reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = torch_reference.random_model(SHAPE)
    return torch_reference.save(model, tmp_path_factory.mktemp("qwen2"), GOLDENS / "stella-qwen2")


def their_gradients(torch_reference) -> tuple[float, dict[str, np.ndarray]]:
    """The triplet loss over mean-pooled vectors in float64, and its gradient by torch name."""
    torch, model = torch_reference.torch, torch_reference.exact(torch_reference.random_model(SHAPE))
    mask = torch.tensor(np.arange(12) < LENGTHS[:, None])
    states = model(torch.tensor(IDS), mask.long()).last_hidden_state
    pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    anchor, positive, negative = pooled.split(2)
    distances = [(anchor - other).norm(dim=1) for other in (positive, negative)]
    loss = torch.relu(distances[0] - distances[1] + MARGIN).mean()
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


@pytest.mark.torch
def test_gradients_are_those_of_torch(torch_reference, checkpoint: Path) -> None:
    """Of every tensor, to 1e-4 of its largest number."""
    opened = Checkpoint.open(checkpoint)
    model = opened.load_model([None], make_mesh())

    @jax.value_and_grad
    def loss(params: Mapping[str, jax.Array]) -> jax.Array:
        embeddings = model.with_params(params)(jnp.asarray(IDS), jnp.asarray(LENGTHS))
        return losses.triplet(tuple(jnp.split(embeddings, 3)), margin=MARGIN).mean()

    value, found = jax.jit(loss)(model.params())
    expected_value, expected = their_gradients(torch_reference)
    assert expected_value > 1
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for path, gradient in found.items():
        for name, tensor in opened.weights.leaves[path].to_torch(np.asarray(gradient)):
            wanted = expected.pop(name)
            np.testing.assert_allclose(tensor, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max(), err_msg=name)
    assert not expected


WORDS = ["fog", "law", "owl", "sea", "ink", "jam", "elm", "oak"]


def log(**options: Any) -> list[float]:
    """The losses of three steps of the stand-in for gte-Qwen2."""
    checkpoint = Checkpoint.open(GOLDENS / "gte-qwen2")
    model = checkpoint.load_model([None], make_mesh(options.pop("mesh", None)), **options)
    state, step = make_step(model, losses.triplet, optax.adamw(1e-3, eps=1e-4), StepConfig(dropout=False))
    texts = [[f"{start} {word}" for word in WORDS] for start in ("a", "one", "no other than an")]
    batch = Batcher.for_model(model, len(WORDS), max_length=16)(texts)
    found = []
    for _ in range(3):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("options", [*nightly({}), {"fsdp": True}], ids=["whole", "fsdp"])
def test_any_mesh_gives_the_steps_of_one_device(options: dict[str, Any]) -> None:
    alone = log()
    assert alone[2] < alone[1] < alone[0]
    np.testing.assert_allclose(log(mesh="data=4,model=2", **options), alone, rtol=1e-5)
