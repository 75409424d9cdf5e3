"""Reading training rows, from every format, and which are refused by their number."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_jax import StellaError
from train.data import read_triplets, triplets_of

ROWS = [("what is tea?", "a drink", "a car"), ("was ist Öl?", "a, “liquid”", "a\nstone")]
NAMES = ("anchor", "positive", "negative")
MEND = "Mend or remove them, or set data.skip_faulty = true."


def jsonl(rows, names=NAMES) -> bytes:
    return b"".join(json.dumps(dict(zip(names, row, strict=True))).encode() + b"\n" for row in rows)


def csv(rows, names=NAMES) -> bytes:
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [names, *rows]]
    return "\r\n".join(quoted).encode()


@pytest.fixture
def write(tmp_path: Path):
    def write(content: bytes, name: str = "rows.jsonl") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def refused(path: Path, need_negatives: bool = False) -> str:
    with pytest.raises(StellaError) as caught:
        read_triplets(path, need_negatives)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


def test_every_format_holds_the_same_rows(write, tmp_path):
    pq.write_table(pa.table(dict(zip(NAMES, zip(*ROWS, strict=True), strict=True))), tmp_path / "rows.parquet")
    paths = [
        write(jsonl(ROWS)),
        write(b"\xef\xbb\xbf" + jsonl(ROWS), "marked.jsonl"),
        write(gzip.compress(jsonl(ROWS)), "rows.jsonl.gz"),
        write(csv(ROWS), "rows.csv"),
        write(gzip.compress(csv(ROWS)), "rows.CSV.gz"),
        tmp_path / "rows.parquet",
    ]
    for path in paths:
        found = read_triplets(path, need_negatives=True)
        assert list(zip(*found.columns.values(), strict=True)) == ROWS
        assert found.sha256 == triplets_of(ROWS, "").sha256
        assert (len(found), list(found.columns)) == (2, list(NAMES))
        assert found.source == str(path)


def test_negatives_may_be_left_out_and_further_columns_are_ignored(write):
    found = read_triplets(write(jsonl([(7, "a", "b")], ("id", "positive", "anchor"))))
    assert (found.anchors, found.positives, found.negatives) == (["b"], ["a"], None)
    assert list(found.columns) == ["anchor", "positive"]


def test_rows_are_numbered_as_in_the_file(write):
    assert read_triplets(write(b"\n" + jsonl(ROWS[:1]) + b" \n" + jsonl(ROWS[1:]))).numbers == [2, 4]


def test_the_hash_is_of_rows_in_order():
    assert triplets_of(ROWS, "a").sha256 == triplets_of(ROWS, "b").sha256
    assert triplets_of(ROWS, "a").sha256 != triplets_of(ROWS[::-1], "a").sha256
    assert triplets_of([("ab", "c")], "").sha256 != triplets_of([("a", "bc")], "").sha256


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (("", "b", "c"), "row 2: anchor is empty"),
        (("a", " \n", "c"), "row 2: positive is empty"),
        (("a", "b", None), "row 2: negative is missing"),
        (("a", 3, "c"), "row 2: positive is 3, no text"),
        (("a", "a", "c"), "row 2: anchor and positive are the same text"),
        (("a", "b", "b"), "row 2: positive and negative are the same text"),
        (("a", "b", "\ud800"), "row 2: negative holds what is no Unicode text"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(write, row, why):
    assert refused(write(jsonl([ROWS[0], row]))) == f": {why}. {MEND}"


def test_of_many_such_rows_three_are_named(write):
    assert refused(write(jsonl([("a", "a", "c")] * 9))).endswith(f"same text, and 6 rows more. {MEND}")


def test_faulty_rows_can_be_left_out(write):
    found = read_triplets(write(jsonl([("a", "a", "c"), *ROWS, ("", "b", "c")])), skip_faulty=True)
    assert list(zip(*found.columns.values(), strict=True)) == ROWS
    assert found.numbers == [2, 3]
    assert found.skipped == "row 1: anchor and positive are the same text; row 4: anchor is empty"
    assert read_triplets(write(jsonl(ROWS))).skipped == ""
    with pytest.raises(StellaError, match="holds no rows to train on: row 1: anchor is empty"):
        read_triplets(write(jsonl([("", "b", "c")])), skip_faulty=True)


def test_missing_columns(write):
    assert "has no column 'positive', only anchor and text." in refused(write(jsonl([("a", "b")], ("anchor", "text"))))
    pairs = write(jsonl([("a", "b")], NAMES[:2]), "pairs.jsonl")
    assert "has no column 'negative', only anchor and positive; the triplet loss" in refused(pairs, need_negatives=True)
    some = write(jsonl([("a", "b")], NAMES[:2]) + jsonl(ROWS), "some.jsonl")
    assert "row 1: negative is missing" in refused(some)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("rows.txt", b"a", "is of no kind that is read; .jsonl, .csv and .parquet are"),
        ("rows.parquet.gz", b"a", "is of no kind that is read"),
        ("rows.jsonl", b"", "holds no rows."),
        ("rows.csv", b"anchor,positive,negative\n", "holds no rows."),
        ("rows.jsonl", b'{"anchor":', "row 1 is not JSON"),
        ("rows.jsonl", b"\xff\n", "row 1 is not JSON"),
        ("rows.jsonl", b"[1]\n", "row 1 is no JSON object"),
        ("rows.csv", b"anchor,positive\na\n", "row 1: positive is missing"),
        ("rows.csv", b"anchor,positive\na,b,c\n", "row 1: it has more cells than the header"),
        ("rows.csv", b"anchor,positive\na,\xff\n", "row 1: positive holds what is no Unicode text"),
        ("rows.csv", b'anchor,positive\na,"b\n', "the record at line 1 is not CSV"),
        ("rows.jsonl.gz", b"plain", "is damaged or no gzip file"),
        ("rows.jsonl.gz", gzip.compress(jsonl(ROWS))[:-20], "is damaged or no gzip file"),
        ("rows.parquet", b"PAR1", "is no sound Parquet file"),
    ],
)
def test_files_that_cannot_be_read(write, name, content, why):
    assert why in refused(write(content, name))


def test_a_file_that_is_not_there(tmp_path):
    assert "is no file that is there; paths are relative to the working directory" in refused(tmp_path / "no.jsonl")
