"""Seconds of the search behind mined negatives, against FAISS's flat index.

    python bench/mine.py [--rows N] [--anchors N] [--dim E] [-k K] [--repeats N] [--out FILE]

The k nearest of random unit vectors by inner product, exact in both, float32, on the same cores, in turns, after a call
with few anchors each (compilation). What both found is compared. The time is that of a call from and to numpy: for
FAISS `search` of an index that holds its vectors already. FAISS is asked on a CPU only.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

# This file's folder comes last, or its scripts would be taken for packages of their names.
sys.path.append(sys.path.pop(0))

import faiss
import numpy as np
from report import publish, table

from stella_jax.nearest import QUERIES, nearest
from stella_jax.similarity import unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="of the corpus")
    parser.add_argument("--anchors", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="not read: vectors are random")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    sizes = options.rows, options.anchors
    corpus, anchors = (unit(rng.standard_normal((count, options.dim), np.float32)) for count in sizes)
    index = faiss.IndexFlatIP(options.dim)
    index.add(corpus)  # pyright: ignore[reportCallIssue]
    systems = {
        "stella-jax": lambda queries: nearest(queries, corpus, options.k),
        "faiss": lambda queries: index.search(queries, options.k),  # pyright: ignore[reportCallIssue]
    }
    for search in systems.values():
        search(anchors[:QUERIES])
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    found = {}
    for _ in range(options.repeats):
        for name, search in systems.items():
            start = time.perf_counter()
            found[name] = search(anchors)
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    flops = 2 * options.dim * options.rows * options.anchors
    lines = [[name, took, flops / took / 1e9, median["faiss"] / took] for name, took in median.items()]
    (scores, rows), (their_scores, their_rows) = found.values()
    equal, apart = np.mean(rows == their_rows), abs(scores - their_scores).max()
    same = f"The same row in {equal:.5%} of places; scores differ by {apart:.0e}"
    title = f"mine: {options.anchors} anchors, {options.rows} rows of {options.dim} numbers, the {options.k} nearest"
    publish(title, f"{table(['system', 'seconds', 'GFLOP/s', 'x FAISS'], lines)}\n\n{same} at most.", options.out)


if __name__ == "__main__":
    main()
