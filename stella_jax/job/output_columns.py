"""The columns that a job computes: embeddings, one column per head, or scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stella_jax import similarity
from stella_jax.readers.rows import EMBEDDING, SCORE
from stella_jax.scores import activate


def has_scores(fingerprint: Mapping[str, Any]) -> bool:
    """Whether a job with this fingerprint scores pairs."""
    return "activation" in fingerprint


def column_of(dim: int, dims: Sequence[int]) -> str:
    """The column of a head's embeddings in a job with these heads."""
    return f"{EMBEDDING}_{dim}" if len(dims) > 1 else EMBEDDING


def column_names(fingerprint: Mapping[str, Any]) -> list[str]:
    """The columns, one per head."""
    dims = fingerprint["dims"]
    return [SCORE] if has_scores(fingerprint) else [column_of(dim, dims) for dim in dims]


def postprocess(fingerprint: Mapping[str, Any], outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of each head, [n, dim] float32, normalized or activated according to the job's options."""
    if has_scores(fingerprint):
        return [activate(logits, fingerprint["activation"]) for logits in outputs]
    return [similarity.unit(vectors) if fingerprint["normalize"] else vectors for vectors in outputs]
