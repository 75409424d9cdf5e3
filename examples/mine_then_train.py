"""Hard negatives for eleven questions, and a training on them: `tiny`, in seconds.

    python examples/mine_then_train.py OUTPUT

The candidates are all answers and 300 other texts; the negatives of a question are those that `tiny` takes for nearest.
The same from the command line: `python -m train.mine`, and `python -m train` with the file that it writes.
"""

import json
import sys
from pathlib import Path

import optax

from stella_jax import Stella, load
from stella_jax.job.options import ModelOptions
from train import Batcher, losses, make_step
from train.mining import MineCommand, mine
from train.negatives import MiningOptions

EXAMPLES = Path(__file__).parent
PAIRS, CORPUS = EXAMPLES / "porsche_triplets.jsonl", EXAMPLES / "corpus.jsonl"
TOKENS = 32  # at which texts are cut


def column(path: Path, name: str) -> list[str]:
    return [json.loads(line)[name] for line in path.read_text().splitlines()]


def found_first(checkpoint: str) -> int:
    """How many questions have their own answer as the nearest of all candidates."""
    model = Stella.from_pretrained(checkpoint)
    model.max_seq_length = TOKENS
    candidates = model.encode(column(PAIRS, "positive") + column(CORPUS, "text"))
    nearest = model.similarity(model.encode(column(PAIRS, "anchor")), candidates).argmax(axis=1)
    return sum(int(row == i) for i, row in enumerate(nearest))


def main(output: str) -> None:
    mined, model = f"{output}/mined.jsonl", ModelOptions("tiny", max_length=TOKENS)
    options = MiningOptions(num_negatives=3)
    command = MineCommand(str(PAIRS), mined, model, options, str(CORPUS), anchor_prompt="none", output_format="n-tuple")
    print(mine(command))

    texts = [column(Path(mined), name) for name in ("anchor", "positive", "negative", "negative_2", "negative_3")]
    trained = load("tiny")
    state, step = make_step(trained, losses.multiple_negatives_ranking, optax.adamw(2e-3))
    batcher = Batcher.for_model(trained, batch_size=len(texts[0]), max_length=TOKENS)
    for _ in range(40):
        state, metrics = step(state, batcher(texts))
    trained.with_params(state.params).save_pretrained(f"{output}/trained")
    before, after = found_first("tiny"), found_first(f"{output}/trained")
    print(f"loss {metrics['loss']:.4f}; answers found first: {before} of 11 before, {after} of 11 after")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
