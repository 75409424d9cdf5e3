"""Rows of .jsonl and .txt files."""

import gzip
import time

import pytest
from reading import FIELDS, compressed, records_of, rows_of

from stella_jax.readers import lines
from stella_jax.readers.records import read_rows
from stella_jax.readers.rows import Rejected, Row
from stella_jax.storage.location import locate


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_every_line_of_a_text_file_is_a_row(tmp_path, name):
    path = tmp_path / name
    content = b"one\n\ntwo\r\nlast without end"
    path.write_bytes(compressed(name, content))
    assert [(row.id, row.text) for row in rows_of(path)] == [
        (f"{name}:1", "one"),
        (f"{name}:2", ""),
        (f"{name}:3", "two"),
        (f"{name}:4", "last without end"),
    ]


def test_blank_lines_of_jsonl_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"text": "a"}\n  \n\r\n{"text": "b"}')
    assert [(row.number, row.id) for row in rows_of(path)] == [(2, "a.jsonl:2"), (5, "a.jsonl:5")]


BLANKS = b"\n" * 3000 + b" \t\r\n" * 1000 + b"   "


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_blank_lines_are_skipped_many_at_a_time(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(compressed(name, b'\n{"text": "a"}\n' + BLANKS + b'{"text": "b"}\n' + BLANKS))
    assert list(read_rows(locate(path), FIELDS.columns)) == [(2, {"text": "a"}), (4003, {"text": "b"})]
    records = records_of(path)
    assert (next(records), records.skip_blank(), records.offset) == (b"", 0, 1)
    calls, done = 0, 1
    for _ in records:
        calls, done = calls + 1, done + 1 + records.skip_blank()
        tail = records_of(path, done, records.offset)
        assert next(tail, None) == next(records_of(path, done), None)
    assert (done, calls < 20) == (8004, True)


def test_blank_lines_of_other_formats(tmp_path):
    for name, count in {"a.txt": 3, "a.csv": 2}.items():
        (tmp_path / name).write_bytes(b"text\n\n\n")
        records = records_of(tmp_path / name)
        assert (next(records), records.skip_blank(), len(list(records))) == (
            b"text" if count == 3 else None,
            0,
            count - 1,
        )


def test_many_blank_lines_in_a_small_archive(tmp_path, refused):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * 2**24) * 4 + gzip.compress(b'{"text": "a"}'))
    start = time.monotonic()
    assert [number for number, _ in read_rows(locate(path), FIELDS.columns)] == [2**26 + 1]
    assert time.monotonic() - start < 20
    path.write_bytes(gzip.compress(b"\n" * 2**20)[:-9])
    with refused("a.jsonl.gz", "row 1048576"):
        list(read_rows(locate(path), FIELDS.columns))


@pytest.mark.parametrize(
    ("line", "row_id", "reason"),
    [
        (b'{"text": "a"', None, "not JSON: Expecting ',' delimiter at character 12"),
        (b"nonsense", None, "not JSON: Expecting value at character 0"),
        (b"[" * 100_000, None, "not JSON: maximum recursion depth exceeded"),
        (b'{"text": ' + b"1" * 5000 + b"}", None, "not JSON: Exceeds the limit"),
        (b'["text"]', None, "not a JSON object"),
        (b'"text"', None, "not a JSON object"),
        (b'{"text": "\xff"}', None, "not UTF-8: byte 0xFF at byte 10"),
        (b'{"id": "i"}', "i", "text is missing"),
        (b'{"id": "i", "text": null}', "i", "text is null, not a string"),
        (b'{"id": "i", "text": 3.5}', "i", "text is 3.5, not a string"),
        (b'{"id": "i", "text": ["a", "b"]}', "i", 'text is ["a", "b"], not a string'),
        (b'{"id": "i", "text": {"a": 1}}', "i", 'text is {"a": 1}, not a string'),
        (b'{"id": "i", "text": true}', "i", "text is true, not a string"),
        (b'{"id": "i", "text": "a\\ud800b"}', "i", "text holds a lone surrogate (U+D800 at character 1)"),
        (b'{"id": null, "text": "a"}', None, "id is null, not a string or a whole number"),
        (b'{"id": true, "text": "a"}', None, "id is true, not a string or a whole number"),
        (b'{"id": 1.0, "text": "a"}', None, "id is 1.0, not a string or a whole number"),
        (b'{"id": [1], "text": "a"}', None, "id is [1], not a string or a whole number"),
        (b'{"id": "", "text": "a"}', None, "id is empty"),
        (b'{"id": "\\udfff", "text": "a"}', None, "id holds a lone surrogate (U+DFFF at character 0)"),
    ],
)
def test_invalid_json_rows(tmp_path, line, row_id, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    before, rejected, after = rows_of(tmp_path / "a.jsonl")
    assert isinstance(before, Row)
    assert isinstance(after, Row)
    assert rejected[:3] == ("a.jsonl", 2, row_id)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith(reason)


def test_invalid_utf8_in_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nb\xe4d\ngood\n")
    assert rows_of(tmp_path / "a.txt")[1] == Rejected("a.txt", 2, None, "not UTF-8: byte 0xE4 at byte 1")


def test_a_line_without_an_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2**20)
    (tmp_path / "a.txt").write_bytes(b"a\n" + b"x" * 3 * 2**20 + b"\nb\n")
    a, long, b = rows_of(tmp_path / "a.txt")
    assert long == Rejected("a.txt", 2, None, "longer than 1 MiB without a line end")
    assert (a.text, b.text, b.number) == ("a", "b", 3)
