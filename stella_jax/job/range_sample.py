"""The int8 or uint8 ranges of a new job: from a file, or from a sample of its inputs."""

from itertools import zip_longest
from typing import Any

import numpy as np

from stella_jax.errors import StellaError
from stella_jax.job.job import Job
from stella_jax.job.output_columns import postprocess
from stella_jax.job.ranges import ranges_to_json, read_ranges
from stella_jax.pretrained import PretrainedModel
from stella_jax.quantization import SCALAR, Ranges, finite_rows
from stella_jax.readers.rows import Row
from stella_jax.readers.sample import sample_inputs

# The 434M encoder takes a minute for 256 rows on a CPU.
SAMPLED_ROWS = {"cpu": 256}
DEFAULT_SAMPLED_ROWS = 2048


def make_ranges(model: PretrainedModel, path: str | None, job: Job) -> dict[str, Any]:
    """The ranges as JSON (see `ranges_to_json`); empty if the precision needs none.

    Args:
      path: of a file; None takes them from a sample.

    Raises:
      StellaError: as `read_ranges`; or a file is given but the precision needs none, or fewer than two rows can be
        embedded.
    """
    precision = job.fingerprint["precision"]
    if precision not in SCALAR:
        if path:
            raise StellaError(f"--ranges: not used with precision {precision}; leave it out, or choose int8 or uint8.")
        return {}
    return ranges_to_json(read_ranges(path, model.head_dims) if path else _of_sample(model, job))


def _of_sample(model: PretrainedModel, job: Job) -> dict[int, Ranges]:
    """The ranges of a seeded sample: the first row of each block, then the second one of each, and so on."""
    blocks, _ = sample_inputs(job.inputs, job.row_fields)
    kept = {id(block.kept): block.kept for block in blocks}.values()  # a block that was drawn twice counts once
    rows = (row for together in zip_longest(*kept) for row in together)
    texts = [row.text for row in rows if isinstance(row, Row)][: SAMPLED_ROWS.get(model.platform, DEFAULT_SAMPLED_ROWS)]
    tokens = model.tokenize(texts, job.fingerprint["prompt"])
    [(_, found)] = model.runner.stream([tokens], model.max_seq_length)
    found, precision = postprocess(job.fingerprint, found), job.fingerprint["precision"]
    finite = np.logical_and.reduce([finite_rows(vectors, precision) for vectors in found])
    return {dim: Ranges.of(vectors[finite]) for dim, vectors in zip(model.head_dims, found, strict=True)}
