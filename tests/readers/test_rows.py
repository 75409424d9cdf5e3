"""Rows of files of every type: valid ones, and rejected ones with their reasons."""

import gzip
import json
from collections import deque

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import FIELDS, compressed, iterate_rows, only_row, peak_memory, rows_of, write_table

from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.rows import Rejected, Row, RowFields


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.csv.gz", "a.csv.zst", "a.parquet", "A.JSONL"]
)
def test_every_type_of_file_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    ids, texts = ["x", "7", "z"], ["one", 'two, "quoted"\nlines', "Käse 北京 🧀"]
    if name.endswith("parquet"):
        write_table(path, text=texts, other=[1, 2, 3], id=ids)
    elif "csv" in name:
        cells = "id,other,text\r\n" + "".join(
            f'{i},,"{t.replace(chr(34), chr(34) * 2)}"\r\n' for i, t in zip(ids, texts, strict=True)
        )
        path.write_bytes(compressed(name, cells.encode()))
    else:
        content = "".join(json.dumps({"text": t, "id": i}) + "\n" for i, t in zip(ids, texts, strict=True)).encode()
        path.write_bytes(compressed(name, content))
    assert rows_of(path) == [Row(name, n, i, t) for n, i, t in zip((1, 2, 3), ids, texts, strict=True)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_a_byte_order_mark_is_skipped(tmp_path, name):
    content = {"a.jsonl": b'{"text": "x"}', "a.txt": b"x", "a.csv": b"text\nx\n"}[name]
    assert only_row(tmp_path / name, b"\xef\xbb\xbf" + content).text == "x"


def test_integer_ids_and_empty_texts(tmp_path):
    assert only_row(tmp_path / "a.jsonl", b'{"id": 12, "text": ""}') == Row("a.jsonl", 1, "12", "")
    [row] = rows_of(write_table(tmp_path / "a.parquet", id=[3], text=["t"]))
    assert row.id == "3"


def test_fields_with_other_names(tmp_path):
    row = only_row(tmp_path / "a.jsonl", b'{"id": 1, "key": "k", "body": "b"}', RowFields("body", "key"))
    assert (row.id, row.text) == ("k", "b")
    [row] = rows_of(write_table(tmp_path / "a.parquet", key=["k"], body=["b"]), RowFields("body", "key"))
    assert (row.id, row.text) == ("k", "b")


def test_long_texts_and_nul_characters(tmp_path):
    word = "x" * 2**20
    assert only_row(tmp_path / "a.jsonl", json.dumps({"text": word}).encode()).text == word
    assert only_row(tmp_path / "a.csv", f"text\n{word}\n".encode()).text == word
    assert only_row(tmp_path / "b.jsonl", b'{"text": "a\\u0000b"}').text == "a\0b"
    assert only_row(tmp_path / "b.csv", b"text\na\0b\n").text == "a\0b"


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 6])
def test_reading_from_the_middle(tmp_path, start):
    texts = ["a", "b", "c", "d", "e"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "a.txt").write_text("".join(t + "\n" for t in texts))
    (tmp_path / "a.csv").write_text("text\n" + "".join(t + "\n" for t in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=2)
    for name in ("a.jsonl", "a.txt", "a.csv", "a.parquet"):
        assert [(row.number, row.text) for row in rows_of(tmp_path / name, start=start)] == [
            (i + 1, text) for i, text in enumerate(texts) if i >= start
        ]


def test_a_chosen_id_field_is_required_in_every_row(tmp_path):
    row = only_row(tmp_path / "a.jsonl", b'{"id": 1, "text": "a"}', RowFields("text", "key"))
    assert row == Rejected("a.jsonl", 1, None, "key is missing")


def test_a_missing_file(tmp_path, refused):
    with refused("a.jsonl"):
        rows_of(tmp_path / "a.jsonl")


def test_a_directory_without_inputs(tmp_path, refused):
    with refused(str(tmp_path)):
        rows_of(tmp_path)


@pytest.mark.parametrize("name", ["a.xml", "a", "a.gz", "a.parquet.gz", "a.json"])
def test_unsupported_file_types(tmp_path, name, refused):
    (tmp_path / name).touch()
    with refused(name, ".jsonl"):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_utf16(tmp_path, name, mark, refused):
    (tmp_path / name).write_bytes(mark + b"a\0")
    with refused(name, "UTF-16"):
        rows_of(tmp_path / name)


def test_a_text_file_has_no_ids(tmp_path, refused):
    (tmp_path / "a.txt").touch()
    with refused("a.txt", "'key'"):
        rows_of(tmp_path / "a.txt", RowFields("text", "key"))


def test_inputs_have_different_names(tmp_path, refused):
    paths = [tmp_path / "x" / "a.txt", tmp_path / "y" / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [source.name for source in open_inputs(paths, FIELDS)] == ["x/a.txt", "y/a.txt", "b.txt"]
    with refused("x/a.txt"):
        open_inputs([paths[0], tmp_path / "y" / ".." / "x" / "a.txt"], FIELDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.parquet"])
def test_reading_takes_no_more_memory_for_more_rows(tmp_path, name):
    def peak(count: int) -> int:
        path = tmp_path / str(count) / name
        path.parent.mkdir()
        texts = [f"{i:0200}" for i in range(count)]
        if name.endswith("parquet"):
            write_table(path, text=texts)
        elif name.endswith("csv"):
            path.write_text("text\n" + "\n".join(texts))
        else:
            path.write_bytes(gzip.compress("\n".join(json.dumps({"text": t}) for t in texts).encode()))
        del texts
        return peak_memory(lambda: deque(iterate_rows(path), 0))

    assert peak(40_000) < peak(4_000) + 1_000_000  # of 8 MB of text
