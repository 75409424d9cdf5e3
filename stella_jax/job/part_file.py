"""Part files: tables of embeddings or scores as Parquet. The same rows give the same bytes."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.quantization import vector_layout
from stella_jax.readers.rows import SCORE
from stella_jax.storage.store import Store
from stella_jax.tokenizer.tokenizer import Tokens

# Small enough to stream, large enough to compress well.
GROUP_BYTES = 32 * 2**20


def vector_type(dim: int, precision: str) -> pa.DataType:
    """The type of an embedding column: lists of `dim` numbers, or of the bytes of their signs."""
    dtype, width = vector_layout(precision, dim)
    return pa.list_(pa.from_numpy_dtype(dtype), width)


def part_table(
    ids: Sequence[str],
    outputs: Mapping[str, np.ndarray],
    tokens: Sequence[Tokens],
    kept: Mapping[str, pa.Array] | None = None,
) -> pa.Table:
    """The table of a part of n rows.

    Args:
      outputs: by column (see `column_names`), [n, width], quantized.
      kept: kept columns, n values each (see `kept_columns`).
    """
    columns = {
        "id": pa.array(ids, pa.string()),
        **{name: pa.array(found[:, 0]) if name == SCORE else _vectors(found) for name, found in outputs.items()},
        "n_tokens": pa.array([len(text.ids) for text in tokens], pa.int32()),
        "truncated": pa.array([text.truncated for text in tokens], pa.bool_()),
        **(kept or {}),
    }
    return pa.table(columns)


def vectors_of(column: pa.Array) -> np.ndarray:
    """The quantized embeddings [n, width] of a column of lists, or the scores [n, 1] of a column of numbers."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()[:, None]
    return column.flatten().to_numpy().reshape(-1, column.type.list_size)


def _vectors(embeddings: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])


def _values(field: pa.Field) -> tuple[str, pa.DataType]:
    """The path of a column's values in a Parquet file, and their type."""
    is_list = pa.types.is_fixed_size_list(field.type)
    return (f"{field.name}.list.element", field.type.value_type) if is_list else (field.name, field.type)


def write_part(store: Store, name: str, table: pa.Table) -> tuple[int, str]:
    """Writes a part file atomically; returns its size and sha256.

    Every page has a checksum, since nothing else would reveal a flipped bit in a vector. float32 compresses best with
    BYTE_STREAM_SPLIT, and dictionaries make it larger. int8 gets a dictionary, since Parquet has no integers shorter
    than four bytes. float16 stays plain, since DuckDB cannot read it otherwise.
    """
    names = table.schema.names
    fields = [table.schema.field(name) for name in names[1 : names.index("n_tokens")]]
    computed = dict(map(_values, fields))
    width = sum(getattr(field.type, "list_size", 1) * _values(field)[1].byte_width for field in fields)
    with store.replacing(name) as file:
        pq.write_table(
            table,
            file,
            row_group_size=max(1, GROUP_BYTES // width),
            compression="zstd",
            use_dictionary=[path for path, type in computed.items() if pa.types.is_integer(type)],  # pyright: ignore[reportArgumentType]
            use_byte_stream_split=[path for path, type in computed.items() if pa.types.is_float32(type)],  # pyright: ignore[reportArgumentType]
            write_page_checksum=True,
        )
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), sha256
