"""Similarity of embeddings in float32; the names and signs are those of sentence-transformers."""

from collections.abc import Callable

import numpy as np


def _rows(x: np.ndarray) -> np.ndarray:
    return np.atleast_2d(np.asarray(x, dtype=np.float32))


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a zero row stays zero."""
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))


def _manhattan(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([-np.abs(row - b).sum(axis=-1) for row in a])


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([-np.linalg.norm(row - b, axis=-1) for row in a])


MATRIX: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda a, b: unit(a) @ unit(b).T,
    "dot": lambda a, b: a @ b.T,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}

PAIRWISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda a, b: (unit(a) * unit(b)).sum(axis=-1),
    "dot": lambda a, b: (a * b).sum(axis=-1),
    "euclidean": lambda a, b: -np.linalg.norm(a - b, axis=-1),
    "manhattan": lambda a, b: -np.abs(a - b).sum(axis=-1),
}


def similarity(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix [n, m] of every row of a with every row of b; distances are negated, so larger is nearer."""
    return MATRIX[name](_rows(a), _rows(b))


def similarity_pairwise(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The vector [n] of row i of a with row i of b."""
    return PAIRWISE[name](_rows(a), _rows(b))
