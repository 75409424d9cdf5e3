"""The activation of a reranker's raw scores."""

import numpy as np


def activate(logits: np.ndarray, activation: str) -> np.ndarray:
    """Applies the activation to raw scores, float32 of any shape: 1 / (1 + exp(-x)) for "sigmoid", x for "none"."""
    if activation == "none":
        return logits
    small = np.exp(-np.abs(np.asarray(logits, np.float64, order="C")))  # cannot overflow for either sign
    return (np.where(logits < 0, small, 1) / (1 + small)).astype(np.float32)
