"""Distillation as in stella's training: one student learns from two teachers.

    python examples/distill.py OUTPUT

The teachers are two heads of `tiny`, of 64 and 32 dimensions; the student gets a new head of 96 dimensions and learns
the teachers' vectors, which embedding jobs wrote. train/recipes/distill.toml is a similar recipe as a file.
"""

import sys
from pathlib import Path

from stella_jax.cli.main import main as stella_jax
from stella_jax.graceful_shutdown import GracefulShutdown
from train.loop import train
from train.metrics import read_metrics
from train.recipe import recipe_of

CORPUS = str(Path(__file__).parent / "corpus.jsonl")  # rows with an id and a text


def main(output: str) -> None:
    teachers = [f"{output}/teacher-{dim}" for dim in (64, 32)]
    for dim, teacher in zip(("64", "32"), teachers, strict=True):
        if stella_jax(["embed", CORPUS, "--out", teacher, "--dim", dim, "--no-progress"]):
            sys.exit(1)
    texts = {"path": CORPUS, "columns": {"anchor": "text"}, "teachers": teachers, "max_rows": 128}
    recipe = {
        "model": "tiny",
        "new_head": {"dim": 96},
        "output": f"{output}/student",
        "data": {"sets": [texts, texts | {"split": "eval"}], "max_length": 32},
        "loss": {"name": "stella_distillation", "matryoshka_dims": [96, 48]},
        "optimizer": {"learning_rate": 1e-2, "train_only": ["head/*"]},
        "loop": {"epochs": 6, "batch_size": 32, "eval_every": 24, "save_every": 24},
    }
    print(train(recipe_of(recipe), GracefulShutdown(grace=float("inf"))))
    losses = [line["eval"]["loss"] for line in read_metrics(Path(recipe["output"], "metrics.jsonl")) if "eval" in line]
    print(f"distance from the teachers: {losses[0]:.2f} before, {losses[-1]:.2f} after")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
