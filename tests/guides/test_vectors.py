"""The guide's code blocks that read vectors find the nearest texts, each at its precision."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pages import DOCS, blocks_of

from stella_jax import Stella
from stella_jax.job.part_file import part_table, write_part
from stella_jax.job.ranges import ranges_to_json
from stella_jax.option_values import PRECISIONS
from stella_jax.quantization import Ranges, dequantize, quantize
from stella_jax.storage.store import open_store
from stella_jax.tokenizer.tokenizer import Tokens

TEXTS = ["green tea", "a game", "brew tea", "the sea", "how do I brew green tea?", "owls", "ink", "oak"]


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    """Blocks on pyarrow, the query, DuckDB, FAISS, levels and signs, changed to read the directory `tea`."""
    found = [block.text for block in blocks_of(DOCS / "vectors.md") if block.language == "python" and block.is_run]
    markers = ("pyarrow", "encode_query", "duckdb", "IndexFlatIP", "ranges", "IndexBinary")
    assert all(word in block for word, block in zip(markers, found, strict=True))
    return [block.replace("tea-int8", "tea").replace("tea-binary", "tea") for block in found]


@pytest.fixture(scope="module")
def model() -> Stella:
    return Stella.from_pretrained("tiny")


@pytest.fixture(scope="module")
def vectors(model) -> np.ndarray:
    return model.encode(TEXTS, normalize_embeddings=True)


@pytest.fixture
def write(vectors, tmp_path, monkeypatch):
    """Writes a finished job's directory of two parts into the working directory."""

    def write(precision: str) -> Ranges:
        ranges = Ranges.of(vectors)
        dim = vectors.shape[1]
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tea" / "_job").mkdir(parents=True)
        store = open_store(tmp_path / "tea")
        for part, rows in enumerate((range(5), range(5, 8))):
            found = quantize(vectors[rows], precision, ranges)
            kept = {"title": pa.array([TEXTS[i] for i in rows])}
            table = part_table([f"r{i}" for i in rows], {"embedding": found}, [Tokens([1], False)] * len(rows), kept)
            write_part(store, f"part-00000-{part:05}.parquet", table)
        manifest = {"precision": precision, "dims": [dim], "ranges": ranges_to_json({dim: ranges})}
        (tmp_path / "tea" / "_job" / "manifest.json").write_text(json.dumps(manifest))
        return ranges

    return write


def run(blocks: list[str], names: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Runs the blocks in order with these names; returns all names."""
    defined = dict(names)
    for block in blocks:
        exec(block, defined)
    return defined


def test_pyarrow_duckdb_and_faiss(blocks, write, vectors, capsys):
    write("float32")
    names = run(blocks[:3]) | run([*blocks[:2], blocks[3]])
    np.testing.assert_array_equal(names["embeddings"], vectors)
    assert names["ids"] == [f"r{i}" for i in range(8)] and names["table"]["title"].to_pylist() == TEXTS
    expected = np.argsort(-(vectors @ names["query"]))[:5]
    assert [row[0] for row in names["nearest"]] == [f"r{i}" for i in expected]
    np.testing.assert_array_equal(names["rows"][0], expected)
    assert capsys.readouterr().out == f"{[f'r{i}' for i in expected]}\n"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pyarrow_and_duckdb_at_every_precision(blocks, write, vectors, precision):
    import duckdb

    ranges = write(precision)
    names, expected = run(blocks[:1]), quantize(vectors, precision, ranges)
    assert names["embeddings"].dtype == expected.dtype
    np.testing.assert_array_equal(names["embeddings"], expected)
    rows = duckdb.execute("SELECT embedding, title FROM 'tea/*.parquet'").fetchall()
    np.testing.assert_array_equal(np.array([row[0] for row in rows]), expected)
    assert [row[1] for row in rows] == TEXTS


def test_levels_to_numbers(blocks, write, vectors):
    ranges = write("int8")
    names = run([blocks[0], blocks[4]])
    expected = dequantize(quantize(vectors, "int8", ranges), "int8", vectors.shape[1], ranges)
    np.testing.assert_allclose(names["embeddings"], expected, atol=1e-6)


def test_signs(blocks, write, vectors, model):
    write("binary")
    query = model.encode_query(TEXTS[4])
    names = run([*blocks[:2], blocks[5]])
    np.testing.assert_array_equal(names["signs"], np.where(vectors > 0, 1, -1))
    apart = ((vectors > 0) != (query > 0)).sum(axis=1)
    np.testing.assert_array_equal(names["distances"][0], np.sort(apart)[:5])
