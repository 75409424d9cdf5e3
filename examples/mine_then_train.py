"""Mining of hard negatives for eleven questions, and training on them: `tiny`, in seconds.

    python examples/mine_then_train.py OUTPUT

Candidates are all answers and 300 other texts; a question's negatives are the nearest ones by `tiny`. On the command
line, use `stella-jax mine`, then `stella-jax train` with the file that it writes.
"""

import json
import sys
from pathlib import Path

import optax

from stella_jax import Stella, load
from stella_jax.job.options import ModelOptions
from train import Batcher, losses, make_step
from train.hard_negatives import MineCommand, mine
from train.negative_selection import MiningOptions

EXAMPLES = Path(__file__).parent
PAIRS, CORPUS = EXAMPLES / "porsche_triplets.jsonl", EXAMPLES / "corpus.jsonl"
MAX_LENGTH, STEPS = 32, 40  # tokens at which texts are truncated, and training steps


def column(path: Path, name: str) -> list[str]:
    return [json.loads(line)[name] for line in path.read_text().splitlines()]


def found_first(checkpoint: str) -> int:
    """The number of questions whose own answer is the nearest candidate."""
    model = Stella.from_pretrained(checkpoint)
    model.max_seq_length = MAX_LENGTH
    candidates = model.encode(column(PAIRS, "positive") + column(CORPUS, "text"))
    nearest = model.similarity(model.encode(column(PAIRS, "anchor")), candidates).argmax(axis=1)
    return sum(int(row == i) for i, row in enumerate(nearest))


def main(output: str) -> None:
    if Path(output).exists():
        sys.exit(f"{output}: already exists; choose another directory.")
    mined, model = f"{output}/mined.jsonl", ModelOptions("tiny", max_length=MAX_LENGTH)
    options = MiningOptions(num_negatives=3)
    command = MineCommand(str(PAIRS), mined, model, options, str(CORPUS), anchor_prompt="none", output_format="n-tuple")
    print(mine(command))

    texts = [column(Path(mined), name) for name in ("anchor", "positive", "negative", "negative_2", "negative_3")]
    trained = load("tiny")
    state, step = make_step(trained, losses.multiple_negatives_ranking, optax.adamw(2e-3))
    batcher = Batcher.for_model(trained, batch_size=len(texts[0]), max_length=MAX_LENGTH)
    for _ in range(STEPS):
        state, metrics = step(state, batcher(texts))
    trained.with_params(state.params).save_pretrained(f"{output}/trained")
    before, after = found_first("tiny"), found_first(f"{output}/trained")
    print(f"loss {metrics['loss']:.4f}; answers found first: {before} of 11 before, {after} of 11 after")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
