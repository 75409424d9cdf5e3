"""Writes the inputs of train/recipes/distill.toml: an untrained student, and texts with ids.

    python -m tools.tiny.distillation runs/distillation [--layers 4]

Run it from the root of the repository. The student has tiny's tokenizer, heads and width. The texts are the distinct
anchors and positives of the WordNet triplets: train.jsonl has the training split, test.jsonl the evaluation split.
"""

import argparse
import gzip
import json
import shutil
import sys
from pathlib import Path

from stella_jax.checkpoint.hub import TINY
from stella_jax.cli.exit_codes import exit_code
from stella_jax.errors import StellaError
from tools.tiny.untrained import write_weights

WORDNET = Path(__file__).parents[2] / "examples/wordnet"
SPLITS = {"train": "train", "test": "eval"}


def write_student(directory: Path, layers: int) -> None:
    """Writes the files of `tiny` with another number of layers and random float32 weights."""
    shutil.copytree(TINY, directory, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
    config = json.loads((directory / "config.json").read_bytes())
    config |= {"num_hidden_layers": layers, "torch_dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_weights(directory)


def texts_of(split: str) -> list[str]:
    """Distinct anchors and positives of a split of triplets."""
    with gzip.open(WORDNET / f"wordnet_triplets_{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return list(dict.fromkeys(row[column] for row in rows for column in ("anchor", "positive")))


def write(directory: Path, layers: int) -> None:
    if directory.exists():
        raise StellaError(f"{directory}: already exists; remove it or choose another directory.")
    write_student(directory / "student", layers)
    for name, split in SPLITS.items():
        rows = [{"id": f"{name}-{i}", "anchor": text} for i, text in enumerate(texts_of(split))]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="directory to write")
    parser.add_argument("--layers", type=int, default=4, help="layers of the student (4)")
    arguments = parser.parse_args()
    return exit_code("tools.tiny.distillation", lambda: write(arguments.directory, arguments.layers))


if __name__ == "__main__":
    sys.exit(main())
