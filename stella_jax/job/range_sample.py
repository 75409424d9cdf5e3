"""The ranges of a new job at int8 or uint8: from a file, or from rows of its inputs."""

from itertools import zip_longest
from typing import Any

import numpy as np

from stella_jax.errors import StellaError
from stella_jax.job.computed import finished
from stella_jax.job.job import Job
from stella_jax.job.ranges import ranges_to_json, read_ranges
from stella_jax.pretrained import PretrainedModel
from stella_jax.quantization import SCALAR, Ranges
from stella_jax.readers.rows import Row
from stella_jax.readers.sample import sample_inputs

# On a CPU the 434M encoder takes a minute for as many.
SAMPLED_ROWS = {"cpu": 256}
DEFAULT_SAMPLED_ROWS = 2048


def make_ranges(model: PretrainedModel, path: str | None, job: Job) -> dict[str, Any]:
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


def _of_sample(model: PretrainedModel, job: Job) -> dict[int, Ranges]:
    """Of the first rows of each place of a seeded sample, then of the second ones, and so on."""
    places, _ = sample_inputs(job.inputs, job.row_fields)
    kept = {id(place.kept): place.kept for place in places}.values()  # what was drawn twice counts once
    rows = (row for together in zip_longest(*kept) for row in together)
    texts = [row.text for row in rows if isinstance(row, Row)][: SAMPLED_ROWS.get(model.platform, DEFAULT_SAMPLED_ROWS)]
    tokens = model.tokenize(texts, job.fingerprint["prompt"])
    [(_, found)] = model.runner.stream([tokens], model.max_seq_length)
    found = finished(job.fingerprint, found)
    finite = np.logical_and.reduce([np.isfinite(vectors).all(axis=1) for vectors in found])
    return {dim: Ranges.of(vectors[finite]) for dim, vectors in zip(model.head_dims, found, strict=True)}
