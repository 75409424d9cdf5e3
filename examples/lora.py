"""LoRA fine-tuning of `tiny` on eleven triplets: trains a small part of the parameters, in a format that peft can read.

    python examples/lora.py OUTPUT

OUTPUT/merged is a plain checkpoint, OUTPUT/adapter is for peft.PeftModel.from_pretrained.
"""

import json
import sys
from pathlib import Path

import optax

from stella_jax import Stella, load
from stella_jax.lora import save_adapter, with_lora
from train import Batcher, losses, make_step

ROWS = [json.loads(line) for line in (Path(__file__).parent / "porsche_triplets.jsonl").read_text().splitlines()]
TEXTS = [[row[column] for row in ROWS] for column in ("anchor", "positive", "negative")]
STEPS = 20


def nearer(model: Stella) -> int:
    """The number of anchors that are nearer to their positive than to their negative."""
    anchors, positives, negatives = (model.encode(column) for column in TEXTS)
    return int((model.similarity_pairwise(anchors, positives) > model.similarity_pairwise(anchors, negatives)).sum())


def main(output: str) -> None:
    if Path(output).exists():
        sys.exit(f"{output}: already exists; choose another directory.")
    model = with_lora(load("tiny", dim=64), rank=4, alpha=8, targets=["q_proj", "v_proj", "down_proj"])
    params = model.params()
    trained, total = (sum(params[name].size for name in names) for names in (model.trainable, params))
    print(f"{trained:,} of {total:,} parameters train")

    state, step = make_step(model, losses.triplet, optax.adamw(5e-3))  # the adapters only
    batcher = Batcher.for_model(model, batch_size=len(ROWS))
    for number in range(STEPS):
        state, metrics = step(state, batcher(TEXTS))
        print(number, f"loss {metrics['loss']:.4f}")

    model = model.with_params(state.params)
    model.save_pretrained(f"{output}/merged")
    save_adapter(model, f"{output}/adapter")
    before, after = nearer(Stella.from_pretrained("tiny", dim=64)), nearer(Stella.from_pretrained(f"{output}/merged"))
    print(f"anchors nearer to their positive than to their negative: {before} of {len(ROWS)} before, {after} after")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
