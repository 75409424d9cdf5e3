"""Choices that the command line shares with the library; here, since --help must not import numpy."""

from typing import Literal

# Of the numbers in a job's parts.
PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")

# Of a reranker's scores.
ScoreActivation = Literal["sigmoid", "none"]
SCORE_ACTIVATIONS: tuple[ScoreActivation, ...] = ("sigmoid", "none")
