"""Copied columns: their values and types from every type of file, and invalid ones."""

import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.kept_columns import kept_columns, resolve_types
from stella_jax.readers.rows import Rejected, Row, RowFields
from stella_jax.storage.location import locate


def read(paths: list[Path], fields: RowFields) -> tuple[list[Row | Rejected], RowFields]:
    """The rows of files as a job reads them, and the fields with their types."""
    fields = resolve_types([locate(path) for path in paths], fields)
    rows = [
        source.row(i, record, fields)
        for source in open_inputs(paths, fields)
        for i, record in enumerate(source.records(fields), 1)
    ]
    return [row for row in rows if row is not None], fields


def kept(paths: list[Path], *names: str) -> dict[str, pa.Array]:
    rows, fields = read(paths, RowFields(keep=names))
    valid = [row for row in rows if isinstance(row, Row)]
    assert len(valid) == len(rows)
    columns = kept_columns(valid, fields)
    assert {name: column.type for name, column in columns.items()} == dict(zip(names, fields.kept_types, strict=True))
    return columns


def write_lines(path: Path, *rows: object) -> Path:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith("gz") else content)
    return path


def write_table(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_strings_from_every_type_of_file(tmp_path, name):
    titles, urls = ["one", 'two, "2"\n', "北京 🧀"], ["", "http://a", "x" * 1000]
    if name.endswith("parquet"):
        path = write_table(tmp_path / name, url=urls, text=["a", "b", "c"], title=titles)
    elif name.endswith("csv"):
        path = tmp_path / name
        quoted = ['"{}"'.format(title.replace('"', '""')) for title in titles]
        path.write_text("url,text,title\n" + "".join(f"{u},t,{t}\n" for u, t in zip(urls, quoted, strict=True)))
    else:
        rows = ({"url": u, "text": "t", "title": t, "more": 1} for u, t in zip(urls, titles, strict=True))
        path = write_lines(tmp_path / name, *rows)
    found = kept([path], "title", "url")
    assert found == {"title": pa.array(titles), "url": pa.array(urls)}


def test_other_json_values_become_text(tmp_path):
    values = ["s", 1, 1.5, True, None, ["a", {"b": None}], {"ü": [1, 2]}, 12345678901234567890, "1"]
    rows = [{"text": "t", "v": value} for value in values]
    found = kept([write_lines(tmp_path / "a.jsonl", *rows, {"text": "without"})], "v")["v"].to_pylist()
    shown = ["s", "1", "1.5", "true", None, '["a", {"b": null}]', '{"ü": [1, 2]}', "12345678901234567890", "1", None]
    assert found == shown


STRUCT = pa.struct([("a", pa.int8()), ("at", pa.timestamp("ns"))])
TYPED = [
    pa.array([1, None, -3], pa.int8()),
    pa.array([2**63, None, 0], pa.uint64()),
    pa.array([0.1, None, float("inf")], pa.float32()),
    pa.array([0.5, None, 2], pa.float16()),
    pa.array([True, None, False]),
    pa.array([1, None, 1_700_000_000_123_456_789], pa.timestamp("ns")),
    pa.array([datetime(2024, 1, 1, tzinfo=UTC), None, None], pa.timestamp("us", "UTC")),
    pa.array([Decimal("1.20"), None, Decimal("-9.99")], pa.decimal128(5, 2)),
    pa.array([b"\xff", None, b""], pa.binary()),
    pa.array([[1, 2], None, []], pa.list_(pa.int32())),
    pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    pa.array([{"a": 1, "at": 1}, None, {"a": None, "at": 3}], STRUCT),
    pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    pa.array([None, None, None], pa.null()),
]


@pytest.mark.parametrize("values", TYPED, ids=lambda values: str(values.type))
def test_parquet_keeps_its_types(tmp_path, values):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"v": values, "text": ["a", "b", "c"]}), path, row_group_size=2)
    found = kept([path], "v")["v"]
    assert found.type == values.type and found == values
    rows, fields = read([path], RowFields(keep=("v",)))
    assert kept_columns([], fields)["v"].type == values.type
    assert kept_columns([row for row in rows[1:] if isinstance(row, Row)], fields)["v"] == values[1:]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_all_string_types_become_string(tmp_path, kind):
    path = write_table(tmp_path / "a.parquet", text=["a", "b"], v=pa.array(["x", None]).cast(kind))
    assert kept([path, write_lines(tmp_path / "b.jsonl", {"text": "c", "v": "y"})], "v")["v"].to_pylist() == [
        "x",
        None,
        "y",
    ]


def test_dictionaries_of_numbers_are_decoded(tmp_path):
    values = pa.array([5, None, 5]).dictionary_encode()
    assert kept([write_table(tmp_path / "a.parquet", text=["a", "b", "c"], v=values)], "v")["v"] == pa.array(
        [5, None, 5]
    )


def test_the_text_can_be_kept(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.csv").write_text("text\nthree\n")
    paths = [tmp_path / "a.txt", tmp_path / "b.csv", write_lines(tmp_path / "c.jsonl", {"text": "four"})]
    paths.append(write_table(tmp_path / "d.parquet", text=["five"]))
    assert kept(paths, "text")["text"].to_pylist() == ["one", "two", "three", "four", "five"]


def test_without_keep_no_file_is_opened():
    assert resolve_types([locate("missing.parquet")], RowFields()) == RowFields()
    assert kept_columns([Row("a", 1, "i", "t")], RowFields()) == {}


# Errors


@pytest.mark.parametrize(
    "keep",
    [("a", "b", "a"), *((name,) for name in ("key", "id", "n_tokens", "truncated", "embedding", "Embedding_256"))],
)
def test_names_that_cannot_be_kept(keep, refused):
    with refused("--keep", repr(keep[0])):
        RowFields(id="key", keep=keep)


def test_a_file_without_the_column(tmp_path, refused):
    full = write_lines(tmp_path / "a.jsonl", {"text": "a", "v": "x"})
    (tmp_path / "b.csv").write_text("text\nb\n")
    (tmp_path / "c.txt").write_text("c\n")
    table = write_table(tmp_path / "d.parquet", text=["d"])
    for path in (tmp_path / "b.csv", tmp_path / "c.txt", table):
        for paths in ([path], [full, path]):
            with refused(path.name, "'v'"):
                read(paths, RowFields(keep=("v",)))


def test_files_with_different_types(tmp_path, refused):
    numbers = write_table(tmp_path / "a.parquet", text=["a"], v=[1])
    strings = write_table(tmp_path / "b.parquet", text=["a"], v=["1"])
    lines = write_lines(tmp_path / "c.jsonl", {"text": "a", "v": 1})
    for first, second in ((numbers, strings), (strings, numbers), (lines, numbers), (numbers, lines)):
        with refused(second.name, "'v'"):
            read([first, second], RowFields(keep=("v",)))
    damaged = tmp_path / "d.parquet"
    damaged.write_bytes(b"PAR1")
    with refused("d.parquet", mask=r"\(.*\)"):
        read([damaged], RowFields(keep=("v",)))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "i", "text": "a", "v": "\\ud800"}', "v holds a lone surrogate (U+D800 at character 0)"),
        (b'{"id": "i", "text": "a", "v": ["\\ud800"]}', "v holds a lone surrogate (U+D800 at character 2)"),
        (b'{"id": "i", "text": "a", "v": [NaN]}', "v holds NaN or Infinity, which JSON does not allow"),
        (b'{"id": "i", "text": "a", "v": 1e999}', "v holds NaN or Infinity, which JSON does not allow"),
    ],
    ids=["surrogate", "surrogate-in-list", "nan-in-list", "too-large"],
)
def test_values_that_cannot_be_written(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line + b"\n")
    [row], _ = read([path], RowFields(keep=("v",)))
    assert row == Rejected("a.jsonl", 1, "i", reason)


def test_strings_that_are_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,v\na,\xff\n")
    values = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    write_table(tmp_path / "b.parquet", text=["b"], v=values)
    rows, _ = read([tmp_path / "a.csv", tmp_path / "b.parquet"], RowFields(keep=("v",)))
    assert [isinstance(row, Rejected) and row.reason[:19] for row in rows] == ["not UTF-8: byte 0xF"] * 2
