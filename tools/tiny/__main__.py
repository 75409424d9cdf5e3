"""Trains the included checkpoint `tiny` from scratch, on pairs of texts with the same meaning and on triplets.

    python -m tools.tiny PAIRS.jsonl.gz --out build/tiny

Run it from the root of the repository. It makes a tokenizer and random weights (`untrained`), trains with pairs.toml on
the pairs, then with questions.toml on questions made from pairs and triplets: the encoder with its largest head, then
each other head on its own. The result is rounded to float16. An interrupted command resumes when it is run again.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.hub import TINY
from stella_jax.checkpoint.torch_layout import to_torch
from stella_jax.checkpoint.weights import Leaf, Weights
from stella_jax.cli.exit_codes import exit_code
from stella_jax.devices import start_jax
from stella_jax.graceful_shutdown import GracefulShutdown, stopping_on_sigterm
from tools.tiny.glosses import write_pairs, write_questions
from tools.tiny.untrained import write_tokenizer, write_weights
from train.data import Dataset
from train.data_reader import read_dataset
from train.loop import EXPORT, train
from train.recipe import read_recipe

RECIPES = Path(__file__).parent
WORDNET = RECIPES.parents[1] / "train/recipes/wordnet.toml"


class Joined:
    """Weights in float16, merged from several trainings of one checkpoint: the encoder's, and those of heads."""

    def __init__(self, encoder: Weights, heads: dict[str, Weights], like: Weights):
        self.leaves: dict[str, Leaf] = like.leaves
        self.dtypes: dict[str, np.dtype] = dict.fromkeys(like.leaves, np.dtype(np.float16))
        self.prefix, self.headers = like.prefix, like.headers
        self._encoder, self._heads = encoder, heads

    def read(self, path: str) -> np.ndarray:
        """One leaf, contiguous."""
        trained = self._heads.get(self.leaves[path].folder, self._encoder)
        return np.ascontiguousarray(trained.read(path).astype(np.float16))


def write_untrained(directory: Path, rows: Dataset) -> None:
    """Writes the untrained checkpoint: `tiny`'s JSON files, a tokenizer trained on the pairs, and random weights."""
    working = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(working, ignore_errors=True)
    shutil.copytree(TINY, working, ignore=shutil.ignore_patterns("*.safetensors", "*.md", "tokenizer.json"))
    write_tokenizer(working, sorted({*rows.texts["anchor"], *rows.texts["positive"]}))
    write_weights(working)
    _set_dtype(working, "float32")
    working.rename(directory)


def make(source: Path, out: Path, stop: GracefulShutdown) -> str:
    """Makes the checkpoint in the directory `out`; returns a summary in one sentence."""
    work = out.with_name(f"{out.name}-training")
    work.mkdir(parents=True, exist_ok=True)
    rows = read_dataset(source, skip_faulty=True)
    untrained, pairs, questions = work / "untrained", work / "pairs.jsonl", work / "questions.jsonl"
    if not untrained.exists():
        write_untrained(untrained, rows)
    base = Checkpoint.open(untrained)
    data = read_recipe(WORDNET).data
    held_out = {text for path in (data.eval, data.test) for text in read_dataset(str(path)).texts["positive"]}
    write_pairs(rows, pairs)
    write_questions(rows, read_dataset(str(data.train)), held_out, list(base.spec.prompts.values()), questions)

    def run(recipe: str, name: str, model: Path, file: Path, **changes: object) -> Path:
        changes |= {"model": str(model), "data.train": str(file), "output": str(work / name)}
        given = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        print(name, train(read_recipe(RECIPES / recipe, given), stop, sys.stderr.isatty()), sep=": ", flush=True)
        return work / name / EXPORT

    encoder = run("pairs.toml", "pairs", untrained, pairs)
    encoder = run("questions.toml", "questions", encoder, questions)
    *dims, _ = sorted(base.spec.heads)
    only_head: dict[str, object] = {"optimizer.train_only": ["head/*"], "loop.epochs": 1}
    heads = {
        base.spec.heads[dim].folder: run("questions.toml", f"head-{dim}", encoder, questions, dim=dim, **only_head)
        for dim in dims
    }
    join(base, encoder, heads, out)
    return f"{out}: written."


def join(base: Checkpoint, encoder: Path, heads: dict[str, Path], out: Path) -> None:
    """Writes one directory's encoder and head, with the heads of others, in the layout of `base` and in float16."""
    trained = {folder: Checkpoint.open(path).weights for folder, path in heads.items()}
    weights = Joined(Checkpoint.open(encoder).weights, trained, base.weights)
    shutil.rmtree(out, ignore_errors=True)
    to_torch(dataclasses.replace(base, weights=weights), out)
    _set_dtype(out, "float16")


def _set_dtype(directory: Path, dtype: str) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"torch_dtype": dtype}, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.tiny", description="Make the included checkpoint.")
    parser.add_argument("pairs", type=Path, help="JSON lines with anchor and positive")
    parser.add_argument("--out", required=True, type=Path, help="directory to write; training files go to OUT-training")
    arguments = parser.parse_args(argv)

    def run() -> None:
        start_jax()
        stop = GracefulShutdown(grace=float("inf"))
        with stopping_on_sigterm(stop):
            print(make(arguments.pairs, arguments.out, stop))

    return exit_code("tools.tiny", run, "; run the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
