"""Reads the embeddings of a finished job."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError, first_line
from stella_jax.job.output_columns import column_of, has_scores
from stella_jax.job.part_file import vector_type, vectors_of
from stella_jax.job.ranges import ranges_from_json
from stella_jax.quantization import SCALAR, Ranges, dequantize
from stella_jax.storage.store import Store

# Numbers in memory at a time: 32 MiB as float32.
BLOCK_NUMBERS = 2**23


def check_embeddings(store: Store, manifest: dict[str, Any]) -> None:
    """Raises StellaError if the job holds scores."""
    if has_scores(manifest["fingerprint"]):
        raise StellaError(f"{store}: holds scores, not embeddings; pass the output of embed.")


def precision_of(manifest: dict[str, Any]) -> str:
    return manifest.get("precision", "float32")


def read_vectors(
    store: Store, manifest: dict[str, Any], part: int, dim: int
) -> Iterator[tuple[pa.StringArray, np.ndarray]]:
    """Ids and embeddings [rows, dim] float32 of a part, dequantized, a block at a time.

    Args:
      part: its number in the manifest's "parts".
      dim: of one of the job's heads.

    Raises:
      StellaError: the part is missing or damaged, or belongs to another job.
    """
    file = manifest["parts"][part]["file"]
    if not manifest["parts"][part]["rows"]:
        return
    precision, column, ranges = precision_of(manifest), column_of(dim, manifest["dims"]), _ranges(manifest, dim)
    for ids, vectors in _blocks(store, file, column, vector_type(dim, precision), max(1, BLOCK_NUMBERS // dim)):
        yield ids, dequantize(vectors, precision, dim, ranges)


def _ranges(manifest: dict[str, Any], dim: int) -> Ranges | None:
    return ranges_from_json(manifest["ranges"])[dim] if precision_of(manifest) in SCALAR else None


def _blocks(
    store: Store, name: str, column: str, type: pa.DataType, rows: int
) -> Iterator[tuple[pa.StringArray, np.ndarray]]:
    path = f"{store}/{name}"
    try:
        with store.open(name) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            found = file.schema_arrow.field(column).type
            if found != type:
                raise StellaError(f"{path}: column {column} is {found}, not {type}; the file belongs to another job.")
            for batch in file.iter_batches(rows, columns=["id", column]):
                yield batch.column("id"), vectors_of(batch.column(column))
    except FileNotFoundError:
        raise StellaError(f"{path}: missing; run the job again.") from None
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StellaError(f"{path}: damaged ({first_line(error)}); remove it and run the job again.") from error
