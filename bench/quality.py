"""Agreement of bfloat16 and float32 on real texts: cosines of the vectors, and overlap of nearest neighbors.

    python bench/quality.py [--texts N] [--tiny] [--peer] [--out FILE]

Each text is a query against all others; the overlap is the share of its ten nearest neighbors in float32 that are also
among the ten in bfloat16. `--peer` adds sentence-transformers in bfloat16 against its own float32.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from inputs import checkpoint, corpus_texts, parser_of, size_of
from report import publish, table
from systems import LeftOutError, System, sentence_transformers, stella_jax

from stella_jax import Stella
from stella_jax.similarity import unit

NEAREST = 10
COLUMNS = (
    "bfloat16 against float32",
    "texts",
    "minimum cosine",
    "1st percentile",
    "median",
    f"overlap of {NEAREST} nearest",
    "same nearest",
)


def nearest(vectors: np.ndarray, count: int) -> np.ndarray:
    """Indices [n, count] of each unit vector's nearest others among [n, dim] by cosine, nearest first."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def agreement(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Minimum, 1st percentile and median of row-wise cosines of two [n, dim], overlap of ten nearest, same nearest."""
    a, b = unit(a), unit(b)
    cosines = np.sum(a * b, axis=1, dtype=np.float64)
    of_a, of_b = nearest(a, NEAREST), nearest(b, NEAREST)
    shared = np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(of_a, of_b, strict=True)])
    same = np.mean(of_a[:, 0] == of_b[:, 0])
    return [
        float(cosines.min()),
        float(np.quantile(cosines, 0.01)),
        float(np.median(cosines)),
        float(shared),
        float(same),
    ]


def row(systems: Sequence[System], texts: list[str], length: int) -> list[object]:
    """A row of the table; `systems` are one system in float32 and in bfloat16."""
    exact, rounded = (system.encode(texts, length) for system in systems)
    least, low, median, shared, same = agreement(exact, rounded)
    return [systems[0].name, len(texts), f"{least:.5f}", f"{low:.5f}", f"{median:.5f}", f"{shared:.4f}", f"{same:.4f}"]


def measure(directory: Path, texts: list[str], options: argparse.Namespace) -> list[list[object]]:
    """A row for stella-jax and, with --peer, one for sentence-transformers."""
    models = [Stella.from_pretrained(directory, dtype=dtype) for dtype in ("float32", "bfloat16")]
    length = models[0].max_seq_length
    rows = [row([stella_jax(model) for model in models], texts, length)]
    if options.peer:
        theirs = [sentence_transformers(directory, dtype) for dtype in ("float32", "bfloat16")]
        rows.append(row(theirs, texts, length))
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--peer", action="store_true", help="also measure sentence-transformers")
    options = parser.parse_args()
    texts = corpus_texts(options.corpus, options.texts)
    with checkpoint(options) as directory:
        try:
            rows = measure(directory, texts, options)
        except LeftOutError as reason:
            raise SystemExit(f"sentence-transformers cannot run: {reason}; leave out --peer.") from None
        title = f"quality: bfloat16 against float32, {size_of(directory)}"
    publish(title, table(COLUMNS, rows), options.out)


if __name__ == "__main__":
    main()
