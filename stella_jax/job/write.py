"""Embeddings -> a part file. The same rows give the same bytes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.job.atomic import replacing
from stella_jax.tokenizer import Tokens

# Small enough to stream through, large enough to compress well.
GROUP_BYTES = 32 * 2**20


def part_table(ids: Sequence[str], embeddings: np.ndarray, tokens: Sequence[Tokens]) -> pa.Table:
    """The table of a part from n ids, [n, dim] float32 embeddings, and the n texts' tokens."""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1), pa.float32()), embeddings.shape[1])
    columns = {
        "id": pa.array(ids, pa.string()),
        "embedding": vectors,
        "n_tokens": pa.array([len(text.ids) for text in tokens], pa.int32()),
        "truncated": pa.array([text.truncated for text in tokens], pa.bool_()),
    }
    return pa.table(columns)


def write_part(path: Path, table: pa.Table) -> tuple[int, str]:
    """Writes a part file atomically; returns its size and sha256.

    Every page carries a checksum, since nothing else tells a flipped bit in a vector from a vector. Split streams of
    bytes compress floats best; dictionaries make them larger.
    """
    with replacing(path) as file:
        pq.write_table(
            table,
            file,
            row_group_size=max(1, GROUP_BYTES // (4 * table.schema.field("embedding").type.list_size)),
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=["embedding.list.element"],  # pyright: ignore[reportArgumentType]
            write_page_checksum=True,
        )
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
