"""Seconds of the search behind mined negatives, against FAISS's flat index.

    python bench/mine.py [--rows N] [--anchors N] [--dim E] [-k K] [--repeats N] [--out FILE]

The k nearest of random unit vectors by inner product, exact in both, float32, on the same cores, in turns, after one
warm-up (compilation) each; what both found is compared. The time is that of a call: for FAISS `search` of an index that
holds its vectors already, for us `nearest` from and to numpy. FAISS is asked on a CPU only.
"""

import argparse
from pathlib import Path

# This file's folder holds scripts with the names of packages of ours; see bench/train.py.
import sys

sys.path.append(sys.path.pop(0))

import faiss
import numpy as np
from report import interleaved, publish, table

from stella_jax.nearest import nearest
from stella_jax.similarity import unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="of the corpus")
    parser.add_argument("--anchors", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="not used")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    corpus, anchors = (unit(rng.standard_normal((n, options.dim), np.float32)) for n in (options.rows, options.anchors))
    index = faiss.IndexFlatIP(options.dim)
    index.add(corpus)  # pyright: ignore[reportCallIssue]
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def search(name: str, function) -> None:
        found[name] = function()

    seconds = interleaved(
        {
            "stella-jax": lambda: search("stella-jax", lambda: nearest(anchors, corpus, options.k)),
            "faiss": lambda: search("faiss", lambda: index.search(anchors, options.k)),  # pyright: ignore
        },
        options.repeats,
    )
    scores, rows = found["stella-jax"]
    their_scores, their_rows = found["faiss"]
    products = options.rows * options.anchors
    ratio = seconds["faiss"] / seconds["stella-jax"]
    lines = [
        [name, took, products / took / 1e9, 2 * options.dim * products / took / 1e9, seconds["faiss"] / took]
        for name, took in seconds.items()
    ]
    text = table(["system", "seconds", "1e9 products/s", "GFLOP/s", "x FAISS"], lines)
    same = f"Same rows {np.mean(rows == their_rows):.6%}; largest difference of a score {abs(scores - their_scores).max():.1e}."
    sizes = f"{options.anchors} x {options.rows} at {options.dim}, the {options.k} nearest"
    publish(f"mine: {sizes}", f"{text}\n\n{same}", options.out)


if __name__ == "__main__":
    main()
