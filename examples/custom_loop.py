"""Fine-tuning in your own training loop: `tiny` on eleven triplets, on all devices.

    python examples/custom_loop.py OUTPUT

The word embeddings are frozen; the rest is optax, JAX, and a loss that is a plain function.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from stella_jax import Stella, load
from train import Batcher, make_step

ROWS = [json.loads(line) for line in (Path(__file__).parent / "porsche_triplets.jsonl").read_text().splitlines()]
TEXTS = [[row[column] for row in ROWS] for column in ("anchor", "positive", "negative")]


def softplus_triplet(embeddings, columns):
    """log(1 + exp(|a - p| - |a - n|)) of each row: a triplet loss without a margin."""
    anchor, positive, negative = embeddings
    near, far = (jnp.linalg.norm(anchor - other + 1e-6, axis=-1) for other in (positive, negative))
    return jax.nn.softplus(near - far)


def main(output: str) -> None:
    if Path(output).exists():
        sys.exit(f"{output}: already exists; choose another directory.")
    mesh = f"data={jax.device_count()}"
    model = load("tiny", dim=64, mesh=mesh)
    labels = {name: "freeze" if name.startswith("encoder/embeddings/word") else "train" for name in model.params()}
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 20)))
    optimizer = optax.multi_transform({"train": adamw, "freeze": optax.set_to_zero()}, labels)

    state, step = make_step(model, softplus_triplet, optimizer)  # jitted, the state donated
    batcher = Batcher.for_model(model, batch_size=len(ROWS), devices=jax.device_count())
    for number in range(20):
        state, metrics = step(state, batcher(TEXTS))
        print(number, f"loss {metrics['loss']:.4f}", f"gradient norm {metrics['grad_norm']:.4f}")

    model.with_params(state.params).save_pretrained(output)
    trained = Stella.from_pretrained(output)
    anchors, positives, negatives = (trained.encode(column) for column in TEXTS)
    nearer = trained.similarity_pairwise(anchors, positives) > trained.similarity_pairwise(anchors, negatives)
    print(f"{nearer.sum()} of {len(ROWS)} anchors are nearer to their positive than to their negative")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
