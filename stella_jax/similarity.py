"""Similarity of embeddings in float32, with the names and signs of sentence-transformers."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from stella_jax.errors import StellaError, short_repr


def _rows(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    rows = _matrix(a), _matrix(b)
    if rows[0].ndim != 2 or rows[1].ndim != 2 or rows[0].shape[1] != rows[1].shape[1]:
        raise StellaError(f"embeddings: shapes {np.shape(a)} and {np.shape(b)} cannot be compared.")
    return rows


def _matrix(x: ArrayLike) -> np.ndarray:
    try:
        if np.iscomplexobj(x):
            raise TypeError
        return np.atleast_2d(np.asarray(x, dtype=np.float32))
    except (ValueError, TypeError) as error:  # texts, objects, rows of unequal length
        raise StellaError(f"embeddings: expected rows of real numbers of equal length, got {short_repr(x)}.") from error


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros stays zero."""
    x = np.asarray(x, dtype=np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))


def _manhattan(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _map_rows(lambda row: -np.abs(row - b).sum(axis=-1), a, b)


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _map_rows(lambda row: -np.linalg.norm(row - b, axis=-1), a, b)


def _map_rows(function: Callable[[np.ndarray], np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.empty((len(a), len(b)), np.float32)
    for i, row in enumerate(a):
        out[i] = function(row)
    return out


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


def similarity(name: str, a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Similarities [n, m] of every row of a with every row of b; distances are negated, so larger is nearer.

    Raises:
      StellaError: they are not numbers, or their rows have different lengths.
    """
    return MATRIX[name](*_rows(a, b))


def similarity_pairwise(name: str, a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Similarities [n] of row i of a with row i of b.

    Raises:
      StellaError: they are not numbers, or their shapes differ.
    """
    rows = _rows(a, b)
    if rows[0].shape != rows[1].shape:
        raise StellaError(f"embeddings: shapes {np.shape(a)} and {np.shape(b)} cannot be compared in pairs.")
    return PAIRWISE[name](*rows)
