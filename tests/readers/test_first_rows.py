"""Fields that no row at the start of a .jsonl file has."""

import gzip
import json
import pickle
from pathlib import Path

import fsspec
import pytest
from reading import compressed

from stella_jax import StellaError
from stella_jax.readers.first_rows import FIRST_BYTES, check_first_rows
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.rows import RowFields
from stella_jax.storage.remote_file import RemoteFile

ROW = {"url": "u", "body": "b"}


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def check(path: str | Path, fields: RowFields) -> None:
    check_first_rows(open_inputs([path], fields), fields)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        (RowFields(), "text"),
        (RowFields("body", "id"), "id"),
        (RowFields("body", query="query"), "query"),
        (RowFields("x" * 5000), "xxx"),
    ],
    ids=["text", "id", "query", "long"],
)
def test_a_missing_field(tmp_path, fields, missing, refused):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROW, {"n": 1} | ROW))
    with refused("a.jsonl: ", missing, "url, body and n"):
        check(path, fields)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_after_broken_rows_in_every_compression(tmp_path, suffix, refused):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compressed(suffix, b"\xef\xbb\xbf\nbroken\n[]\n" + lines(ROW)))
    with refused(f"a{suffix}: ", "'text'"):
        check(path, RowFields())


def test_a_misspelled_column_to_keep(tmp_path, caplog, check_message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROW, {"rare": 1} | ROW))
    check(path, RowFields("body", keep=("url", "rare")))
    assert not caplog.messages
    check(path, RowFields("body", keep=("titel", "url")))
    [message] = caplog.messages
    check_message(message, "a.jsonl: ", "'titel'")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"broken\n",
        b"[1]\n{}\n",
        b"\xff\n",
        lines(ROW, {"text": 5}),
        b"broken\n" + lines({"text": "t"}),
        lines(ROW)[:-1] + b" " * FIRST_BYTES + lines({"text": "t"}),
        lines({"text": "t" * FIRST_BYTES}),
    ],
    ids=["empty", "blank", "broken", "list", "not-utf8", "number", "broken-first", "beyond", "long"],
)
def test_rows_that_are_left_to_the_job(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    check(path, RowFields())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", lines(ROW)),
        ("a.jsonl", "\ufefftext".encode("utf-16")),
        ("a.jsonl.gz", gzip.compress(lines(ROW))[:-9]),
        ("a.jsonl.gz", b"not gzip"),
        ("a.jsonl.zst", b"not zstd"),
    ],
    ids=["text", "utf16", "gz-cut", "gz-broken", "zst-broken"],
)
def test_files_that_are_left_to_the_job(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    check(tmp_path / name, RowFields())


def test_one_request_of_the_first_file(monkeypatch):
    system = fsspec.filesystem("memory")
    for name in ("a.jsonl", "b.jsonl"):
        system.pipe(f"/first/{name}", lines({"text": "t" * 99}) * 10_000)
    read, asked = RemoteFile._read, []
    monkeypatch.setattr(RemoteFile, "_read", lambda self, size: asked.append(size) or read(self, size))
    check("memory://first/*.jsonl", RowFields())
    assert asked == [FIRST_BYTES]


def test_the_error_can_be_sent_to_another_process(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROW))
    with pytest.raises(StellaError) as raised:
        check(path, RowFields())
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
