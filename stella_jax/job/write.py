"""Embeddings -> a part file. The same rows give the same bytes."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.job.store import Store
from stella_jax.tokenizer import Tokens

# Small enough to stream through, large enough to compress well.
GROUP_BYTES = 32 * 2**20


def column_of(dim: int, dims: Sequence[int]) -> str:
    """The column that holds embeddings of `dim` numbers in a part with those of several heads, or of one."""
    return f"embedding_{dim}" if len(dims) > 1 else "embedding"


def part_table(ids: Sequence[str], embeddings: Sequence[np.ndarray], tokens: Sequence[Tokens]) -> pa.Table:
    """The table of a part from n ids, [n, dim] float32 embeddings of each head, and the n texts' tokens."""
    dims = [vectors.shape[1] for vectors in embeddings]
    columns = {
        "id": pa.array(ids, pa.string()),
        **{column_of(dim, dims): _vectors(found) for dim, found in zip(dims, embeddings, strict=True)},
        "n_tokens": pa.array([len(text.ids) for text in tokens], pa.int32()),
        "truncated": pa.array([text.truncated for text in tokens], pa.bool_()),
    }
    return pa.table(columns)


def _vectors(embeddings: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1), pa.float32()), embeddings.shape[1])


def write_part(store: Store, name: str, table: pa.Table) -> tuple[int, str]:
    """Writes a part file atomically; returns its size and sha256.

    Every page carries a checksum, since nothing else tells a flipped bit in a vector from a vector. Split streams of
    bytes compress floats best; dictionaries make them larger.
    """
    vectors = [field for field in table.schema if field.name.startswith("embedding")]
    width = sum(field.type.list_size for field in vectors)
    with store.replacing(name) as file:
        pq.write_table(
            table,
            file,
            row_group_size=max(1, GROUP_BYTES // (4 * width)),
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=[f"{field.name}.list.element" for field in vectors],  # pyright: ignore[reportArgumentType]
            write_page_checksum=True,
        )
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), sha256
