"""Rows of .csv files."""

import gzip

import pytest
from reading import peak_memory, rows_before_error, rows_of

from stella_jax.readers import csv_rows
from stella_jax.readers.columns import NUMBERS, Column, RowError
from stella_jax.readers.records import read_rows
from stella_jax.readers.rows import Rejected
from stella_jax.storage.location import locate


def test_blank_lines_of_csv_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text\na\n\n""\n')
    assert [(row.number, row.text) for row in rows_of(path)] == [(1, "a"), (3, "")]


LONG = b"longer " * 200


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize(
    "record",
    [LONG, b"i," + LONG, b'i,"' + LONG + b'"', b'i,"' + LONG + b'"",' + LONG + b'"'],
    ids=["one-cell", "two-cells", "quoted", "quoted-quote"],
)
def test_a_long_line_of_csv_is_not_read_whole(tmp_path, monkeypatch, record, end):
    monkeypatch.setattr(csv_rows, "MAX_LINE_BYTES", 100)
    (tmp_path / "a.csv").write_bytes(end.join([b"id,text", b"1,before", record, b"3,after", b""]))
    before, rejected, after = rows_of(tmp_path / "a.csv")
    assert (before.text, after.text, after.number) == ("before", "after", 3)
    assert rejected == Rejected("a.csv", 2, None, "longer than 0 MiB without a line end")


def test_a_record_that_is_too_long(tmp_path, monkeypatch, refused, check_message):
    monkeypatch.setattr(csv_rows, "MAX_LINE_BYTES", 100)
    path = tmp_path / "a.csv"
    for record in (b'i,"' + b"line\n" * 100, b'i,"' + LONG, b'i,"a\n' + LONG + b'"', b'i,"a\n' + LONG):
        path.write_bytes(b"id,text\n1,before\n" + record + b"\n3,after\n")
        rows, sentence = rows_before_error(path)
        assert [row.text for row in rows] == ["before"]
        check_message(sentence, f"{path}: ", "line 3")
    for header in (b"id,text" + LONG, b'id,"text' + LONG, b'"' + b"a\n" * 100):
        path.write_bytes(header + b"\n1,a\n")
        with refused("a.csv", "header"):
            rows_of(path)


def test_a_very_long_line_in_a_small_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text\na\n") + gzip.compress(b"x" * 2**25) * 4 + gzip.compress(b"\nb\n"))
    found: list = []
    assert peak_memory(lambda: found.extend(rows_of(path))) < 2**24
    assert [getattr(row, "text", None) for row in found] == ["a", None, "b"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"i", "1 cells where the header has 2"),
        (b"i,a,b", "3 cells where the header has 2"),
        (b"i,b\xe4d", "not UTF-8: byte 0xE4"),
        (b'i,"a"b', "not CSV: ',' expected after '\"'"),
        (b",a", "id is empty"),
    ],
    ids=["one-cell", "three-cells", "not-utf8", "after-a-quote", "no-id"],
)
def test_invalid_csv_rows(tmp_path, record, reason):
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,before\n" + record + b"\n3,after\n")
    before, rejected, after = rows_of(tmp_path / "a.csv")
    assert (before.text, after.text, after.number) == ("before", "after", 3)
    assert rejected == Rejected("a.csv", 2, None, reason)


@pytest.mark.parametrize(
    "header",
    [b"", b"first text,2\n", b"text,text\na,b\n", b"id,text,id\na,b,c\n", b'"text\n'],
    ids=["empty", "no-text", "two-texts", "two-ids", "open-quote"],
)
def test_invalid_csv_headers(tmp_path, header, refused):
    (tmp_path / "a.csv").write_bytes(header)
    with refused("a.csv"):
        rows_of(tmp_path / "a.csv")


def test_an_open_quote(tmp_path, refused):
    (tmp_path / "a.csv").write_bytes(b'text\none\n"two\nthree\nfour\n')
    with refused("a.csv", "line 3"):
        rows_of(tmp_path / "a.csv")


def cell_as_number(path, cell: str):
    path.write_text(f'n\n"{cell}"\n')
    [(_, row)] = read_rows(locate(path), [Column("n", NUMBERS)])
    assert not isinstance(row, RowError)
    return row["n"]


NUMBER_CELLS = {
    "0": 0,
    "-0.5": -0.5,
    "10": 10,
    "1e3": 1000,
    "2.5E-1": 0.25,
    "1e+2": 100,
    " 1\t": 1,
    "[1, 2.5]": [1, 2.5],
    " [] ": [],
}


@pytest.mark.parametrize(("cell", "number"), NUMBER_CELLS.items())
def test_numbers_are_read_as_in_json(tmp_path, cell, number):
    assert cell_as_number(tmp_path / "a.csv", cell) == number


OTHER_CELLS = ["", "1_000", "[1_000]", "1,000", "nan", "NaN", "inf", "-Infinity", "0x10", "1 2", "01", "+1", ".5", "1."]
OTHER_CELLS += ["\uff11", "\u0661", "1\u0660", "\xa01", "1e", "true"]


@pytest.mark.parametrize("cell", OTHER_CELLS)
def test_other_cells_stay_text(tmp_path, cell):
    assert cell_as_number(tmp_path / "a.csv", cell) == cell
