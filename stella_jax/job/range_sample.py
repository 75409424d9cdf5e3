"""The ranges of a new job at int8 or uint8: from a file, or from rows of its inputs."""

from itertools import islice
from random import Random
from typing import Any

import numpy as np

from stella_jax import similarity
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.job.job import Job
from stella_jax.job.ranges import ranges_to_json, read_ranges
from stella_jax.job.rows import Row
from stella_jax.job.split_reader import read_split
from stella_jax.quantization import SCALAR, Ranges

# Rows from the beginnings of splits that are drawn by a fixed seed; on a CPU the 434M encoder takes a minute for 256.
SAMPLED_SPLITS = 32
SPLIT_ROWS = {"cpu": 8}
DEFAULT_SPLIT_ROWS = 64


def make_ranges(model: Stella, path: str | None, job: Job) -> dict[str, Any]:
    """As `ranges_to_json` gives them; empty where the precision needs none.

    Args:
      path: a file; None takes them from a sample.

    Raises:
      StellaError: see `read_ranges`; or the precision needs none but a file is given, or no two rows can be embedded.
    """
    precision = job.fingerprint["precision"]
    if precision not in SCALAR:
        if path:
            raise StellaError(f"--ranges: precision {precision} has none; leave it out, or choose int8 or uint8.")
        return {}
    return ranges_to_json(read_ranges(path, model.head_dims) if path else _of_sample(model, job))


def _of_sample(model: Stella, job: Job) -> dict[int, Ranges]:
    splits = Random(0).sample(job.splits, min(SAMPLED_SPLITS, len(job.splits)))
    count = SPLIT_ROWS.get(model.platform, DEFAULT_SPLIT_ROWS) * SAMPLED_SPLITS // len(splits)
    rows = (row.row for split in splits for row in islice(read_split(job.inputs, split, job.row_fields), count))
    texts = [row.text for row in rows if isinstance(row, Row)]
    tokens = model.tokenize(texts, job.fingerprint["prompt"])
    [(_, found)] = model.runner.stream([tokens], model.max_seq_length)
    if job.fingerprint["normalize"]:
        found = [similarity.unit(vectors) for vectors in found]
    finite = np.logical_and.reduce([np.isfinite(vectors).all(axis=1) for vectors in found])
    return {dim: Ranges.of(vectors[finite]) for dim, vectors in zip(model.head_dims, found, strict=True)}
