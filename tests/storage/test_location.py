"""Locations: paths and URLs, their versions, and errors while they are read."""

import gzip
import os
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.rows import RowFields
from stella_jax.storage import remote_file
from stella_jax.storage.location import Location, locate

FIELDS = RowFields()


def test_a_path_is_a_location(here):
    Path("a.txt").write_bytes(b"text")
    found = locate("a.txt")
    assert (str(found), found.name, found.full) == ("a.txt", "a.txt", str(here.resolve() / "a.txt"))
    assert (found.parts[-2:], found.kind(), found.size()) == ((here.name, "a.txt"), "file", 4)
    with found.open() as file:
        assert (file.peek(1)[:1], file.read(), file.seekable()) == (b"t", b"text", True)


def test_a_url_is_a_location(memory):
    memory.pipe("/d/a.txt", b"text")
    found = locate("memory://d/a.txt")
    assert (str(found), found.name, found.full) == ("memory://d/a.txt", "a.txt", "memory://d/a.txt")
    assert ("/".join(found.parts), found.kind(), found.size()) == ("memory://d/a.txt", "file", 4)
    with found.open() as file:
        assert (file.peek(1)[:1], file.read(), file.seek(-3, os.SEEK_END), file.read()) == (b"t", b"text", 1, b"ext")


@pytest.mark.parametrize("name", ["memory://d/a.txt", "a.txt"])
def test_a_location_can_be_restored_from_its_full_name(here, name):
    Path("a.txt").touch()
    full = locate(name).full
    assert Location(full).full == full
    assert pickle.loads(pickle.dumps(Location(full))) == Location(full)


def test_a_url_is_read_in_blocks_from_any_position(memory):
    memory.pipe("/a.bin", bytes(range(256)))
    location = Location("memory://a.bin", block=16)
    with location.open() as one, location.open() as other:
        assert (one.read(100), other.read(20)) == (bytes(range(100)), bytes(range(20)))
        assert (one.read(), one.tell()) == (bytes(range(100, 256)), 256)
        assert (other.seek(250), other.read(), other.read()) == (250, bytes(range(250, 256)), b"")


def test_versions_behind_urls(memory, monkeypatch):
    memory.pipe("/a.txt", b"")
    seen = {"name": "/a.txt", "type": "file", "size": 5}
    for extra, version in (
        ({}, ""),
        ({"mtime": datetime(2026, 1, 2, tzinfo=UTC)}, "2026-01-02T00:00:00+00:00"),
        ({"ETag": '"x"', "mtime": 3.5}, '"x"'),
        ({"generation": 17, "updated": "now"}, "17"),
        ({"etag": None, "mtime": 3.5}, "3.5"),
    ):
        monkeypatch.setattr(memory, "info", lambda path, extra=extra: seen | extra)
        assert Location("memory://a.txt").stat() == (5, version)


def test_an_object_that_disappears_or_cannot_be_read(memory, monkeypatch, refused):
    memory.pipe({"/a.txt": b"a\n", "/b.txt": b"b\n"})
    first, second = open_inputs(["memory://*.txt"], FIELDS)
    memory.rm("/a.txt")
    with refused("memory://a.txt"):
        next(first.records(FIELDS))

    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError("permission denied\nand more")

    monkeypatch.setattr(memory, "_open", denied)
    with refused("memory://b.txt", "permission denied"):
        next(second.records(FIELDS))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_a_broken_connection(memory, monkeypatch, tmp_path, name, refused):
    pq.write_table(pa.table({"text": [f"{i:0200}" for i in range(1000)]}), tmp_path / "a.parquet")
    lines = b'"text"\n' + b"".join(b"%0200d\n" % (i**99) for i in range(1000))
    content = (tmp_path / name).read_bytes() if "parquet" in name else gzip.compress(lines) if "gz" in name else lines
    memory.pipe(f"/{name}", content)
    [source] = open_inputs([f"memory://{name}"], FIELDS)
    source = replace(source, location=replace(source.location, block=2**12))
    reads = iter([None] * 3)
    read = remote_file.RemoteFile._read

    def breaking(self: remote_file.RemoteFile, size: int) -> bytes:
        if next(reads, "broken"):
            raise TimeoutError("no answer.")
        return read(self, size)

    monkeypatch.setattr(remote_file.RemoteFile, "_read", breaking)
    with refused(f"memory://{name}", "no answer"):
        list(source.records(FIELDS))


def test_truncated_objects(memory, tmp_path, refused):
    pq.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "a.parquet")
    for name, content in (
        ("a.parquet", (tmp_path / "a.parquet").read_bytes()[:-20]),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000)[:-20]),
        ("b.jsonl.gz", b"{}"),
    ):
        memory.pipe(f"/{name}", content)
        with refused(f"memory://{name}: ", mask=r"(?<=row )\d+|\(.*\)"):
            [list(source.records(FIELDS)) for source in open_inputs([f"memory://{name}"], FIELDS)]
