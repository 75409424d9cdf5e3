"""Rows of .parquet files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import FIELDS, iterate_rows, rows_of, write_table

from stella_jax.readers import parquet_rows
from stella_jax.readers.columns import NUMBERS, Column, kind_of_kept
from stella_jax.readers.records import read_rows
from stella_jax.readers.rows import Rejected, Row, RowFields
from stella_jax.storage.location import locate

STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_all_string_types(tmp_path, kind):
    path = write_table(tmp_path / "a.parquet", id=pa.array(["i", "j"]).cast(kind), text=pa.array(["t", "u"]).cast(kind))
    assert [(row.id, row.text) for row in rows_of(path)] == [("i", "t"), ("j", "u")]


def test_invalid_parquet_rows(tmp_path):
    invalid = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))
    path = write_table(tmp_path / "a.parquet", text=invalid, id=["1", "2", "3"])
    assert rows_of(path)[1] == Rejected("a.parquet", 2, None, "not UTF-8: byte 0xFF at byte 0")
    path = write_table(tmp_path / "b.parquet", text=["a", None, "c"], id=pa.array([1, 2, None]))
    assert rows_of(path) == [
        Row("b.parquet", 1, "1", "a"),
        Rejected("b.parquet", 2, "2", "text is null, not a string"),
        Rejected("b.parquet", 3, None, "id is null, not a string or a whole number"),
    ]


def test_a_value_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "MAX_LINE_BYTES", 2**20)
    path = write_table(tmp_path / "a.parquet", text=["a", "x" * (2**20 + 1), "x" * 2**20])
    assert [getattr(row, "reason", None) for row in rows_of(path)] == [None, "longer than 1 MiB", None]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_large_repeated_values_in_a_small_file(tmp_path, monkeypatch, compression):
    monkeypatch.setattr(parquet_rows, "BATCH_BYTES", 2**21)
    text = pa.DictionaryArray.from_arrays(pa.array([0, 1, None] * 500, pa.int32()), ["x" * 2**18, "y" * 2**18])
    for name, column in {"a.parquet": text.cast(pa.string()), "b.parquet": text}.items():
        settings = {"compression": compression, "dictionary_pagesize_limit": 2**21}
        pq.write_table(pa.table({"text": column}), tmp_path / name, **settings)
        pool = pa.default_memory_pool()
        before, peak, found = pool.bytes_allocated(), 0, []
        for row in iterate_rows(tmp_path / name):
            peak = max(peak, pool.bytes_allocated() - before)
            found.append(row.text[0] if isinstance(row, Row) else None)
        assert found == ["x", "y", None] * 500
        assert peak < 2**23


def test_pages_that_decompress_to_too_much(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(parquet_rows, "UNPACKED_BYTES", 2**20)
    table = pa.table({"text": ["x" * 2**12] * 2**10, "id": list(range(2**10))})
    for rows in (2**10, 2**6):
        pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False, row_group_size=rows)
        if rows == 2**6:
            assert len(rows_of(tmp_path / "a.parquet")) == 2**10
        else:
            with refused("a.parquet", "'text'", mask=r"\d+"):
                rows_of(tmp_path / "a.parquet")


NESTED = {
    "list": (NUMBERS, [[0.5] * 2**9] * 2**10),
    "list.of.lists": (kind_of_kept(), [[[0.5] * 2**9]] * 2**10),
    "struct": (kind_of_kept(), [{"a": 1, "b": {"c": "x" * 2**12}}] * 2**10),
}


@pytest.mark.parametrize("name", NESTED)
def test_pages_of_nested_columns_that_decompress_to_too_much(tmp_path, monkeypatch, name, refused):
    monkeypatch.setattr(parquet_rows, "UNPACKED_BYTES", 2**20)
    kind, values = NESTED[name]
    location, columns = locate(tmp_path / "a.parquet"), [Column(name, kind)]
    settings = {"compression": "zstd", "use_dictionary": False}
    pq.write_table(pa.table({name: values}), str(location), row_group_size=2**6, **settings)
    assert len(list(read_rows(location, columns))) == 2**10
    pq.write_table(pa.table({name: values}), str(location), **settings)
    with refused("a.parquet", repr(name), mask=r"\d+"):
        list(read_rows(location, columns))


@pytest.mark.parametrize("content", [b"", b'{"text": "a"}\n', b"PAR1" + bytes(100) + b"PAR1"], ids=range(3))
def test_parquet_in_name_only(tmp_path, content, refused):
    (tmp_path / "a.parquet").write_bytes(content)
    with refused("a.parquet", mask=r"\(.*\)"):
        rows_of(tmp_path / "a.parquet")


def test_damaged_parquet(tmp_path, refused):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{i:050}" for i in range(20_000)]})
    settings = {"use_dictionary": False, "compression": "none", "write_page_checksum": True}
    pq.write_table(table, path, row_group_size=5_000, **settings)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with refused("a.parquet", "row 10000 ", "checksum", mask=r"\(.*\)"):
        rows_of(path)


@pytest.mark.parametrize(
    ("fields", "column"),
    [(FIELDS, "text"), (RowFields("body", "key"), "key"), (RowFields("n"), "n"), (RowFields("body"), "id")],
)
def test_missing_columns_and_wrong_types(tmp_path, fields, column, refused):
    path = write_table(tmp_path / "a.parquet", body=["a"], n=[1], id=[1.5])
    with refused("a.parquet", repr(column)):
        rows_of(path, fields)
