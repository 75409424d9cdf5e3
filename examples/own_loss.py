"""Your own loss in a recipe: `tiny` on eleven triplets.

    python examples/own_loss.py OUTPUT

The loss is a function in a module, here this one. With a copy of this file in the working directory, a recipe can have
`name = "own_loss:hardest"` under `[loss]`.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from stella_jax.graceful_shutdown import GracefulShutdown
from train.loop import train
from train.recipe import recipe_of

TRIPLETS = str(Path(__file__).parent / "porsche_triplets.jsonl")
EPOCHS = 10


def hardest(embeddings, columns, margin=0.2):
    """Hinge between each anchor's positive and the nearest negative of the whole batch, by cosine."""
    anchor, positive, negative = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in embeddings)
    scores = anchor @ negative.T
    # Rows of weight 0 pad a short batch; a loss that compares rows must skip them.
    scores = jnp.where(columns["weights"][None] > 0, scores, -1.0)
    return jax.nn.relu(scores.max(axis=1) - jnp.sum(anchor * positive, axis=1) + margin)


def main(output: str) -> None:
    recipe = {
        "model": "tiny",
        "dim": 64,
        "output": output,
        "data": {"train": TRIPLETS, "eval": TRIPLETS},
        "loss": {"name": "own_loss:hardest", "args": {"margin": 0.3}},
        "optimizer": {"learning_rate": 2e-3},
        "loop": {"epochs": EPOCHS, "batch_size": 11, "eval_every": 10, "save_every": 10},
    }
    print(train(recipe_of(recipe), GracefulShutdown(grace=float("inf"))))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
