"""Part files: their columns, sizes and checksums at every precision."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_jax.job import part_file
from stella_jax.job.part_file import part_table, vector_type, vectors_of, write_part
from stella_jax.option_values import PRECISIONS
from stella_jax.quantization import Ranges, quantize
from stella_jax.storage.store import open_store
from stella_jax.tokenizer.tokenizer import Tokens

VECTORS = np.random.default_rng(0).standard_normal((300, 20), dtype=np.float32)


def table_of(precision: str, rows: int = 300, **kept: pa.Array) -> pa.Table:
    """A table with two heads, of 20 and 8 dimensions."""
    heads = [VECTORS[:rows], VECTORS[:rows, :8].copy()]
    found = [quantize(vectors, precision, Ranges.of(VECTORS[:, : vectors.shape[1]])) for vectors in heads]
    tokens = [Tokens([1] * (i % 5), i % 2 == 0) for i in range(rows)]
    return part_table(
        [f"r{i}" for i in range(rows)], dict(zip(("embedding_20", "embedding_8"), found, strict=True)), tokens, kept
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_columns_at_every_precision(tmp_path, precision):
    table = table_of(precision, title=pa.array([f"t{i}" for i in range(300)]), year=pa.array(range(300), pa.int16()))
    size, sha256 = write_part(open_store(tmp_path), "part.parquet", table)
    content = (tmp_path / "part.parquet").read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (size, sha256)
    found = pq.read_table(tmp_path / "part.parquet")
    assert found.equals(table)
    assert found.column_names == ["id", "embedding_20", "embedding_8", "n_tokens", "truncated", "title", "year"]
    assert found.schema.field("embedding_20").type == vector_type(20, precision)
    assert found.schema.field("embedding_8").type == vector_type(8, precision)
    expected = quantize(VECTORS, precision, Ranges.of(VECTORS))
    np.testing.assert_array_equal(vectors_of(found["embedding_20"].combine_chunks()), expected)
    assert vectors_of(found["embedding_8"].combine_chunks().slice(0, 0)).shape == (
        0,
        vector_type(8, precision).list_size,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_rows_give_the_same_bytes(tmp_path, precision):
    """Also if they are a slice or a filtered part of more rows."""
    store = open_store(tmp_path)
    first = write_part(store, "a.parquet", table_of(precision, 200, v=pa.array(range(200))))
    more = table_of(precision, 300, v=pa.array(range(300)))
    assert write_part(store, "b.parquet", more.slice(0, 200)) == first
    assert write_part(store, "c.parquet", more.filter(pa.array([i < 200 for i in range(300)]))) == first


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_size_of_a_part(tmp_path, precision):
    vectors = np.random.default_rng(1).standard_normal((4000, 256), dtype=np.float32)
    found = quantize(vectors, precision, Ranges.of(vectors))
    table = part_table([str(i) for i in range(4000)], {"embedding": found}, [Tokens([], False)] * 4000)
    size, _ = write_part(open_store(tmp_path), "part.parquet", table)
    assert size < 1.02 * found.nbytes + 30_000


def test_row_groups_have_a_size_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(part_file, "GROUP_BYTES", 28 * 4 * 10)
    for precision, rows in (("float32", 10), ("float16", 20), ("int8", 40), ("binary", 280)):
        write_part(open_store(tmp_path), "part.parquet", table_of(precision))
        assert pq.read_metadata(tmp_path / "part.parquet").row_group(0).num_rows == rows


def test_a_flipped_bit_is_detected(tmp_path):
    for precision in PRECISIONS:
        write_part(open_store(tmp_path), "part.parquet", table_of(precision))
        path = Path(tmp_path / "part.parquet")
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
        with pytest.raises((pa.ArrowException, OSError)):
            pq.read_table(path, page_checksum_verification=True)


def test_a_part_without_rows(tmp_path):
    table = table_of("binary", 0, v=pa.array([], pa.string()))
    write_part(open_store(tmp_path), "part.parquet", table)
    assert pq.read_table(tmp_path / "part.parquet").schema.equals(table_of("binary", 1, v=pa.array(["a"])).schema)
