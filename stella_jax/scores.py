"""Activations of a reranker's raw scores."""

from typing import Literal

import numpy as np

ScoreActivation = Literal["sigmoid", "none"]
SCORE_ACTIVATIONS: tuple[ScoreActivation, ...] = ("sigmoid", "none")


def activate(logits: np.ndarray, activation: str) -> np.ndarray:
    """Scores of raw ones, float32 of any shape: 1 / (1 + exp(-x)) for "sigmoid", themselves for "none"."""
    if activation == "none":
        return logits
    small = np.exp(-np.abs(np.asarray(logits, np.float64, order="C")))  # of either sign, this cannot overflow
    return (np.where(logits < 0, small, 1) / (1 + small)).astype(np.float32)
