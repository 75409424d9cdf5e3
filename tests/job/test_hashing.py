"""Which file an input is: hashed in whatever order it is read, many at once, and no longer than somebody waits."""

import gzip
import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_jax.job import lines
from stella_jax.job.hashing import Hashed, Hasher, Identity, identify_all
from stella_jax.job.location import Location, locate
from stella_jax.job.rows import Fields
from stella_jax.job.source import open_sources

FIELDS = Fields()


def identity(data: bytes) -> Identity:
    return Identity(len(data), hashlib.sha256(data).hexdigest())


@given(st.binary(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=12))
def test_pieces_in_any_order(tmp_path_factory, data, pieces):
    path = tmp_path_factory.getbasetemp() / "pieces"
    path.write_bytes(data)
    hasher = Hasher(lambda rows: None)
    with Hashed(str(path), hasher).open() as file:
        for at, size in pieces:
            file.seek(at)
            assert file.read(size) == data[at : at + size]
    assert hasher.rest(locate(path)) == identity(data)


CONTENT = {
    "a.txt": b"one\n\ntwo\r\nno end",
    "b.jsonl": b'\xef\xbb\xbf{"text": "a"}\n' + b"x" * 200 + b"\n\n",
    "c.txt": b"x" * 64,
    "d.txt": b"\xef\xbb\xbf",
    "e.csv": b'text\n"a\nb"\n\nx"y\n"z"w\nlast',
    "f.txt": b"",
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", CONTENT)
def test_an_input_is_counted_and_hashed_in_one_pass(tmp_path, monkeypatch, name, zipped):
    monkeypatch.setattr(lines, "LONGEST", 64)
    data = gzip.compress(CONTENT[name]) if zipped else CONTENT[name]
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(data)
    [source] = open_sources([path], FIELDS)
    ticks: list[int] = []
    records = list(source.records(FIELDS))
    assert source.count(FIELDS, ticks.append) == (identity(data), len(records), [(0, 0)])
    assert sum(ticks) == 0


@pytest.mark.parametrize("block", [1, 3, 20, 250])
@pytest.mark.parametrize("name", ["a.txt", "b.jsonl", "c.txt", "d.txt", "f.txt"])
def test_reading_can_begin_at_every_mark(tmp_path, monkeypatch, name, block):
    for constant, value in (("BLOCK", block), ("MARK_BYTES", 2), ("LONGEST", 64)):
        monkeypatch.setattr(lines, constant, value)
    (tmp_path / name).write_bytes(CONTENT[name])
    [source] = open_sources([tmp_path / name], FIELDS)
    _, count, marks = source.count(FIELDS, lambda rows: None)
    records = list(map(str, source.records(FIELDS)))
    assert len(marks) > 1 or block > 3 or b"\n" not in CONTENT[name]
    assert count == len(records)
    for number, offset in marks:
        assert list(map(str, source.records(FIELDS, number, offset))) == records[number:]


def test_a_parquet_file_is_counted_and_hashed(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{i}" for i in range(1000)]}), path, row_group_size=300)
    [source] = open_sources([path], FIELDS)
    found, count, marks = source.count(FIELDS, lambda rows: None)
    assert (found, count) == (identity(path.read_bytes()), 1000)
    assert [number for number, _ in marks] == [0, 300, 600, 900, 1000]
    assert marks[-1][1] > marks[1][1] > marks[0][1] == 0


def test_many_files_in_their_order(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(20)]
    for i, path in enumerate(paths):
        path.write_bytes(b"x" * i)
    ticks: list[int] = []
    assert identify_all(map(locate, paths), ticks.append) == [identity(b"x" * i) for i in range(20)]
    assert len(ticks) >= 20 and sum(ticks) == 0


def test_of_files_that_cannot_be_read_the_first_raises(tmp_path):
    (tmp_path / "b").touch()
    with pytest.raises(FileNotFoundError, match="a'"):
        identify_all([locate(tmp_path / name) for name in "bac"], lambda rows: None)


class _Zeros(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def readinto(self, buffer) -> int:
        return len(buffer)


class Endless(Location):
    def open(self) -> io.BufferedReader:
        return io.BufferedReader(_Zeros())


def test_hashing_ends_when_nobody_waits(tmp_path: Path):
    def interrupt(rows: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a").touch()
    with pytest.raises(KeyboardInterrupt):
        identify_all([locate(tmp_path / "a"), *[Endless("endless")] * 9], interrupt)
