"""Hard negatives for eleven questions, and a training on them: `tiny`, in seconds.

    python examples/mine_then_train.py OUTPUT

The candidates are the questions' own answers and 300 other texts; of each question the negatives are those that `tiny`
takes for nearest. The same from the command line: `python -m train.mine`, and then `python -m train` on its rows.
"""

import json
import sys
from pathlib import Path

import numpy as np
import optax

from stella_jax import Stella, load
from stella_jax.job.options import ModelOptions
from train import Batcher, losses, make_step
from train.mining import MineCommand, mine
from train.negatives import MiningOptions

HERE = Path(__file__).parent
PAIRS, CORPUS = HERE / "porsche_triplets.jsonl", HERE / "corpus.jsonl"


def found_first(model: Stella) -> np.ndarray:
    """Whether each question's answer is the nearest of all candidates."""
    rows, others = ([json.loads(line) for line in path.open()] for path in (PAIRS, CORPUS))
    candidates = [row["positive"] for row in rows] + [row["text"] for row in others]
    scores = model.similarity(model.encode([row["anchor"] for row in rows]), model.encode(candidates))
    return scores.argmax(axis=1) == np.arange(len(rows))


def main(output: str) -> None:
    if Path(output).exists():
        sys.exit(f"{output} exists already; choose another directory.")
    mined_file = Path(output) / "mined.jsonl"
    options, more = MiningOptions(num_negatives=4), {"anchor_prompt": "none", "output_format": "n-tuple"}
    print(mine(MineCommand(str(PAIRS), str(mined_file), ModelOptions("tiny"), options, str(CORPUS), **more)))

    rows = [json.loads(line) for line in mined_file.open()]
    texts = [[row[column] for row in rows] for column in rows[0]]  # anchor, positive, negative, negative_2, ...
    model = load("tiny")
    state, step = make_step(model, losses.multiple_negatives_ranking, optax.adamw(1e-3))
    batcher = Batcher.for_model(model, batch_size=len(rows))
    for _ in range(20):
        state, metrics = step(state, batcher(texts))
    model.with_params(state.params).save_pretrained(f"{output}/trained")

    before, after = (found_first(Stella.from_pretrained(name)).sum() for name in ("tiny", f"{output}/trained"))
    print(f"loss {metrics['loss']:.4f}; answers found first: {before} of 11 before, {after} of 11 after")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
