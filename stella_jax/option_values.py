"""Choices and defaults that the command line shares with the library; here, since --help must not import numpy."""

from typing import Literal

# Of the numbers in a job's parts.
PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")

# Of a reranker's scores.
ScoreActivation = Literal["sigmoid", "none"]
SCORE_ACTIVATIONS: tuple[ScoreActivation, ...] = ("sigmoid", "none")

# Share of a job's rows that may be rejected.
MAX_REJECTED = 0.01

# Time to finish open parts after a request to stop.
GRACE_SECONDS = 30
