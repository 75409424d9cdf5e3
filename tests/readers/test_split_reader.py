"""Reading by splits: however a file is cut, each of its rows comes once and in order, and reading resumes anywhere."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stella_jax.readers import lines
from stella_jax.readers.inputs import InputFile, open_inputs
from stella_jax.readers.rows import Rejected, Row, RowFields
from stella_jax.readers.split_reader import PositionedRow, read_split
from stella_jax.readers.splits import FileSize, Split, plan_splits
from stella_jax.storage.remote_file import RemoteFile

FIELDS = RowFields()
any_cut = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def cut(paths: list[Path], split_bytes: int) -> tuple[list[InputFile], list[Split]]:
    inputs = open_inputs(paths, FIELDS)
    sizes = [FileSize(file.size, file.can_be_cut, 0) for file in inputs]
    inputs = [replace(file, is_cut=file.can_be_cut and file.size > split_bytes) for file in inputs]
    return inputs, plan_splits(sizes, split_bytes)


def read(paths: list[Path], split_bytes: int) -> list[PositionedRow]:
    inputs, splits = cut(paths, split_bytes)
    return [row for split in splits for row in read_split(inputs, split, FIELDS)]


def texts(rows: list[PositionedRow]) -> list[str]:
    return [str(row.row.text) if isinstance(row.row, Row) else row.row.reason for row in rows]


# Lines of text with all that a cut may fall into: characters of one to four bytes, blank lines, CRLF, none at the end.
text_lines = st.lists(st.sampled_from(["", "a", "ä", "水水水", "🙂" * 5, "x" * 40, " "]), max_size=12)


@any_cut
@given(text_lines, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), st.integers(1, 60))
def test_text_can_be_cut_anywhere(tmp_path, written, end, ends, mark, split_bytes) -> None:
    path = tmp_path / "a.txt"
    content = end.join(written) + (end if ends else "")
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + content.encode())
    whole = read([path], 10**6)
    rows = read([path], split_bytes)
    assert texts(rows) == texts(whole)
    assert len({row.row.number for row in rows}) == len(rows)
    expected = content.split("\n")[: None if content and not content.endswith("\n") else -1]
    assert texts(whole) == [line.removesuffix("\r") for line in expected]


@any_cut
@given(st.lists(st.sampled_from([None, "x", "ä" * 20, {"text": 3}]), max_size=10), st.integers(1, 80))
def test_json_lines_can_be_cut_anywhere(tmp_path, values: list[Any], split_bytes) -> None:
    path = tmp_path / "a.jsonl"
    written = [value if isinstance(value, dict) or value is None else {"text": value} for value in values]
    path.write_text("".join("\n" if row is None else json.dumps(row, ensure_ascii=False) + "\n" for row in written))
    assert texts(read([path], split_bytes)) == texts(read([path], 10**6))
    assert len(read([path], split_bytes)) == sum(row is not None for row in written)


def test_a_line_longer_than_a_split_and_than_the_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 64)
    path = tmp_path / "a.txt"
    path.write_text("a\n" + "b" * 50 + "\n" + "c" * 300 + "\nd\n")
    for split_bytes in range(1, 400):
        found = texts(read([path], split_bytes))
        assert [*found[:2], found[3]] == ["a", "b" * 50, "d"] and "longer than" in found[2], split_bytes


@any_cut
@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(50, 3000))
def test_parquet_is_cut_between_row_groups(tmp_path, groups: list[int], split_bytes) -> None:
    path = tmp_path / "a.parquet"
    names = [f"text {i}" for i in range(sum(groups))]
    with pq.ParquetWriter(path, pa.schema({"text": pa.string()})) as writer:
        start = 0
        for rows in groups:
            writer.write_table(pa.table({"text": names[start : start + rows]}), row_group_size=rows)
            start += rows
    rows = read([path], split_bytes)
    assert texts(rows) == names
    assert [row.row.number for row in rows] == list(range(1, len(names) + 1))
    assert [row.row.id for row in rows] == [f"a.parquet:{i + 1}" for i in range(len(names))]


def small_files(folder: Path) -> list[Path]:
    (folder / "a.jsonl").write_text('{"text": "a1"}\n\nbroken\n{"text": "a4"}\n')
    (folder / "b.txt").write_text("b1\nb2\nb3")
    (folder / "c.csv").write_text("text\nc1\n\nc3\n")
    (folder / "empty.txt").write_text("")
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.write('{"text": "d1"}\n{"text": "d2"}\n')
    pq.write_table(pa.table({"text": [f"e{i}" for i in range(5)]}), folder / "e.parquet", row_group_size=2)
    return [folder / name for name in ("a.jsonl", "b.txt", "c.csv", "empty.txt", "d.jsonl.gz", "e.parquet")]


@pytest.mark.parametrize("split_bytes", [10**6, 40, 500])
def test_reading_resumes_at_every_position(tmp_path, split_bytes: int) -> None:
    inputs, splits = cut(small_files(tmp_path), split_bytes)
    for split in splits:
        rows = list(read_split(inputs, split, FIELDS))
        for i, row in enumerate(rows):
            assert list(read_split(inputs, split, FIELDS, row.after)) == rows[i + 1 :]


def test_rows_are_numbered_by_line_or_by_byte(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\n")
    assert [row.row.id for row in read([path], 100)] == ["a.txt:1", "a.txt:2", "a.txt:3"]
    assert [row.row.id for row in read([path], 5)] == ["a.txt@0", "a.txt@4", "a.txt@8"]


def test_invalid_rows_keep_their_positions(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\nbroken\n{"id": "x"}\n{"text": "b", "id": "y"}\n')
    rows = [row.row for row in read([path], 100)]
    assert rows == [
        Row("a.jsonl", 1, "a.jsonl:1", "a"),
        Rejected("a.jsonl", 2, None, "not JSON: Expecting value at character 0"),
        Rejected("a.jsonl", 3, "x", "text is missing"),
        Row("a.jsonl", 4, "y", "b"),
    ]


def test_rows_before_damage_are_read(tmp_path, refused) -> None:
    path = tmp_path / "a.txt.gz"
    written = gzip.compress("".join(f"{i} {i**7 % 99991}\n" for i in range(1000)).encode())
    path.write_bytes(written[: len(written) // 2])
    inputs, [split] = cut([path], 10**6)
    stream = read_split(inputs, split, FIELDS)
    assert len([next(stream) for _ in range(300)]) == 300
    with refused("a.txt.gz", mask=r"(?<=row )[3-9]\d\d(?= )"):
        list(stream)


def test_little_of_a_remote_file_is_read_twice(monkeypatch) -> None:
    lines = ["x" * 99] * 5000
    content = "".join(f"{line}\n" for line in lines).encode()
    fsspec.filesystem("memory").pipe("/read/a.txt", content)
    asked: list[int] = []
    monkeypatch.setattr(
        RemoteFile, "_read", lambda self, size: asked.append(size) or content[self._at : self._at + size]
    )
    [file] = open_inputs(["memory://read/a.txt"], FIELDS)
    splits = plan_splits([FileSize(file.size, True, 0)], len(content) // 4)
    rows = [row for split in splits for row in read_split([replace(file, is_cut=True)], split, FIELDS)]
    assert texts(rows) == lines
    assert len(splits) == 4 and sum(asked) <= len(content) + 4 * 2**16
