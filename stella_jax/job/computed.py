"""What the model gave, as the parts of a job hold it: embeddings, a column for each head, or the score of a pair."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stella_jax import similarity
from stella_jax.readers.rows import EMBEDDING, SCORE
from stella_jax.scores import activate


def has_scores(fingerprint: Mapping[str, Any]) -> bool:
    """Whether a job of this fingerprint scores pairs."""
    return "activation" in fingerprint


def column_of(dim: int, dims: Sequence[int]) -> str:
    """The column that holds embeddings of `dim` numbers in a part with those of several heads, or of one."""
    return f"{EMBEDDING}_{dim}" if len(dims) > 1 else EMBEDDING


def column_names(fingerprint: Mapping[str, Any]) -> list[str]:
    """The columns, one a head."""
    dims = fingerprint["dims"]
    return [SCORE] if has_scores(fingerprint) else [column_of(dim, dims) for dim in dims]


def finished(fingerprint: Mapping[str, Any], found: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What each head gave, [n, dim] float32, as the job's options ask for it: of unit length, or activated."""
    if has_scores(fingerprint):
        return [activate(logits, fingerprint["activation"]) for logits in found]
    return [similarity.unit(vectors) if fingerprint["normalize"] else vectors for vectors in found]
