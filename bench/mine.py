"""Time of the nearest-neighbor search of hard-negative mining, against FAISS's flat index.

    python bench/mine.py [--rows N] [--anchors N] [--dim E] [-k K] [--repeats N] [--out FILE]

Both search the k nearest of random unit vectors by inner product, exactly, in float32, on the same cores, in turns,
after a warm-up call. Results are compared. The time of a call from and to NumPy is measured;
FAISS's index has its vectors already. FAISS runs on the CPU only.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

# Put this folder last on the path: its scripts have the names of packages.
sys.path.append(sys.path.pop(0))

import faiss
import numpy as np
from report import publish, table

from stella_jax.nearest import MAX_QUERIES, nearest
from stella_jax.similarity import unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="vectors of the corpus")
    parser.add_argument("--anchors", type=int, default=100_000, help="query vectors")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("-k", type=int, default=100, help="neighbors of a query")
    parser.add_argument("--repeats", type=int, default=1)
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
        search(anchors[:MAX_QUERIES])
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
    equal, difference = np.mean(rows == their_rows), abs(scores - their_scores).max()
    same = f"{equal:.5%} of the neighbors are the same; scores differ by at most {difference:.0e}."
    title = f"mine: {options.k} nearest of {options.rows} rows, {options.anchors} anchors, {options.dim} dimensions"
    publish(title, f"{table(['system', 'seconds', 'GFLOP/s', 'speedup'], lines)}\n\n{same}", options.out)


if __name__ == "__main__":
    main()
