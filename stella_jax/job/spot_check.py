"""Embeds some rows of a finished job again, from its inputs, and compares the results."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from stella_jax.errors import StellaError
from stella_jax.job.commits import Committed, PartName
from stella_jax.job.job import Job, load_job
from stella_jax.job.output_columns import column_names, has_scores, postprocess
from stella_jax.job.part_file import vectors_of
from stella_jax.job.source_rows import read_source_rows
from stella_jax.pretrained import PretrainedModel
from stella_jax.quantization import PACKED, SCALAR, quantize
from stella_jax.storage.store import Store
from stella_jax.tokenizer.pair_tokenizer import Pair

# Each part of the sample is read as a whole.
MAX_PARTS = 16

# Relative distance that another machine's rounding may cause: 1e-6 and 1e-2 were seen.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


class SpotCheck(NamedTuple):
    """The result for a part: the number of rows embedded again, and their fault, "" for none."""

    name: PartName
    rows: int
    fault: str


def spot_check(
    store: Store, manifest: dict[str, Any], model: PretrainedModel, rows: int, inputs: Sequence[str | Path] = ()
) -> Iterator[SpotCheck]:
    """Embeds random rows again.

    Args:
      rows: how many, at most.
      inputs: the job's inputs that have moved, where they are now.

    Raises:
      StellaError: an input is missing or has changed.
    """
    job, committed, random = _load(store, inputs), Committed(store), np.random.default_rng()
    parts = [part for part in manifest["parts"] if part["rows"]]
    count = min(len(parts), rows, MAX_PARTS)
    chosen = sorted(random.choice(len(parts), count, replace=False).tolist())
    for i, number in enumerate(chosen):
        name = PartName.parse(parts[number]["file"])
        texts = {row.id: row.text for row, is_in_part in read_source_rows(job, committed, name) if is_in_part}
        ids = random.permutation(list(texts))[: rows // count + (i < rows % count)].tolist()
        wrong = list(_wrong(job, model, manifest["dims"], name, {row_id: texts[row_id] for row_id in ids}))
        fault = f"{len(wrong)} of {len(ids)} rows computed again differ ({', '.join(wrong[:3])})" if wrong else ""
        yield SpotCheck(name, len(ids), fault)


def _load(store: Store, inputs: Sequence[str | Path]) -> Job:
    try:
        return load_job(store, inputs)
    except StellaError as error:
        raise StellaError(
            f"{str(error).rstrip('.')}; --sample needs the job's inputs: put them back or use --input."
        ) from error


def _wrong(
    job: Job, model: PretrainedModel, dims: list[int], name: PartName, texts: dict[str, str | Pair]
) -> Iterator[str]:
    """Ids of the texts whose row is missing or differs from the model's result."""
    with job.store.open(name.file) as file:
        table = pq.read_table(file)
    row_of_id = {row_id: row for row, row_id in enumerate(table["id"].to_pylist())}
    tokens = model.tokenize(list(texts.values()), job.fingerprint["prompt"])
    [(_, found)] = model.runner.stream([tokens], model.max_seq_length)
    found = postprocess(job.fingerprint, found)
    precision, least = job.fingerprint["precision"], float(has_scores(job.fingerprint))
    columns = [vectors_of(table[name].combine_chunks()) for name in column_names(job.fingerprint)]
    packed = [quantize(vectors, precision, job.ranges.get(dim)) for dim, vectors in zip(dims, found, strict=True)]
    for i, row_id in enumerate(texts):
        row = row_of_id.get(row_id)
        if row is None or table["n_tokens"][row].as_py() != len(tokens[i].ids):
            yield row_id
            continue
        pairs = [(column[row], ours[i]) for column, ours in zip(columns, packed, strict=True)]
        if not all(_alike(theirs, ours, precision, model.dtype, least) for theirs, ours in pairs):
            yield row_id


def _alike(theirs: np.ndarray, ours: np.ndarray, precision: str, dtype: str, least: float) -> bool:
    """Whether two quantized embeddings, or scores, are equal within another machine's rounding; NaN never is.

    The distance is relative to the length, or to `least` if that is larger: scores near 0 are differences of larger
    numbers.
    """
    tolerance = TOLERANCE[dtype]
    if precision in PACKED:
        return np.unpackbits((theirs ^ ours).view(np.uint8)).mean() <= tolerance**0.5
    if precision in SCALAR:
        return np.abs(theirs.astype(int) - ours).max() <= 1 + 256 * tolerance
    a, b = theirs.astype(np.float32), ours.astype(np.float32)
    return bool(np.linalg.norm(a - b) <= (tolerance + 1e-3 * (precision == "float16")) * max(least, np.linalg.norm(b)))
