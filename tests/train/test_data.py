"""Reading training rows, from every format, and which are refused by their number."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets_of_rows import dataset_of

from train.data import Needs
from train.data_reader import read_dataset

ROWS = [("what is tea?", "a drink", "a car"), ("was ist Öl?", "a, “liquid”", "a\nstone")]
NAMES = ("anchor", "positive", "negative")


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


TRIPLETS = Needs((3, 3), loss="triplet")
PAIRS = Needs((2, 9), loss="ranking")


def test_every_format_gives_the_same_rows(write, tmp_path):
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
        found = read_dataset(path, TRIPLETS)
        assert list(zip(*found.texts.values(), strict=True)) == ROWS
        assert found.sha256 == dataset_of(ROWS, "").sha256
        assert (len(found), list(found.texts)) == (2, list(NAMES))
        assert found.source == str(path)


def test_negatives_are_optional_and_further_columns_are_ignored(write):
    found = read_dataset(write(jsonl([(7, "a", "b")], ("id", "positive", "anchor"))))
    assert [(name, *texts) for name, texts in found.texts.items()] == [("anchor", "b"), ("positive", "a")]
    assert found.columns == {}


def test_rows_are_numbered_as_in_the_file(write, refused):
    content = b"\n" + jsonl(ROWS[:1]) + b" \n" + jsonl([("", "b", "c")])
    with refused("row 4: anchor"):
        read_dataset(write(content))


def test_the_hash_is_of_rows_in_order():
    assert dataset_of(ROWS, "a").sha256 == dataset_of(ROWS, "b").sha256
    # Checkpoints hold it, and a run resumes only with the same.
    assert dataset_of(ROWS, "").sha256 == "3500fb557f0fd102294036cf0e645944b4d6328dc45166425e544a04392e8fd4"
    assert dataset_of(ROWS, "a").sha256 != dataset_of(ROWS[::-1], "a").sha256
    assert dataset_of([("ab", "c")], "").sha256 != dataset_of([("a", "bc")], "").sha256


@pytest.mark.parametrize(
    "row",
    [
        ("", "b", "c"),
        ("a", " \n", "c"),
        ("a", "b", None),
        ("a", 3, "c"),
        ("a", "a", "c"),
        ("a", "b", "b"),
        ("a", "b", "\ud800"),
    ],
    ids=["empty", "blank", "null", "number", "anchor-twice", "positive-twice", "surrogate"],
)
def test_a_faulty_row_is_named(write, row, refused):
    with refused("rows.jsonl", "row 2"):
        read_dataset(write(jsonl([ROWS[0], row])), PAIRS)


def test_of_many_faulty_rows_three_are_named(write, refused):
    with refused("row 1", "row 2", "row 3", "6 more"):
        read_dataset(write(jsonl([("a", "a", "c")] * 9)), PAIRS)


def test_faulty_rows_can_be_left_out(write, refused):
    found = read_dataset(write(jsonl([("a", "a", "c"), *ROWS, ("", "b", "c")])), skip_faulty=True)
    assert list(zip(*found.texts.values(), strict=True)) == ROWS
    assert found.skipped == "row 1: anchor and positive are the same text; row 4: anchor is empty"
    assert read_dataset(write(jsonl(ROWS))).skipped == ""
    with refused("rows.jsonl", "row 1"):
        read_dataset(write(jsonl([("", "b", "c")])), skip_faulty=True)


def test_missing_columns(write, refused):
    with refused("rows.jsonl", "'positive'", "'ranking'"):
        read_dataset(write(jsonl([("a", "b")], ("anchor", "text"))), PAIRS)
    pairs = write(jsonl([("a", "b")], NAMES[:2]), "pairs.jsonl")
    with refused("pairs.jsonl", "'negative'", "'triplet'"):
        read_dataset(pairs, TRIPLETS)
    with refused("some.jsonl", "row 1: negative"):
        read_dataset(write(jsonl([("a", "b")], NAMES[:2]) + jsonl(ROWS), "some.jsonl"), PAIRS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.txt", b"a"),
        ("rows.parquet.gz", b"a"),
        ("rows.jsonl", b""),
        ("rows.csv", b"anchor,positive,negative\n"),
        ("rows.csv", b""),
        ("rows.csv", b"anchor\na\n"),
        ("rows.csv", b'anchor,positive\na,"b\n'),
        ("rows.jsonl.gz", gzip.compress(jsonl(ROWS))[:-20]),
    ],
    ids=["txt", "parquet.gz", "empty", "header", "empty-csv", "column", "quote", "cut-gzip"],
)
def test_files_that_cannot_be_read(write, name, content, refused):
    with refused(name):
        read_dataset(write(content, name), PAIRS)


@pytest.mark.parametrize(("name", "content"), [("rows.jsonl.gz", b"plain"), ("rows.parquet", b"PAR1")])
def test_files_of_another_format(write, name, content, refused):
    with refused(name, mask=r"\(.*\)"):
        read_dataset(write(content, name), PAIRS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b'{"anchor":'),
        ("rows.jsonl", b"\xff"),
        ("rows.jsonl", b"[1]"),
        ("rows.csv", b"a"),
        ("rows.csv", b"a,b,c"),
        ("rows.csv", b"a,\xff"),
        ("rows.csv", b'"a"b,c'),
    ],
    ids=["open-json", "not-utf8-json", "list", "one-cell", "three-cells", "not-utf8", "after-a-quote"],
)
def test_a_row_that_cannot_be_parsed_is_faulty(write, name, content, refused):
    before = b'{"anchor": "a", "positive": "b"}\n' if name == "rows.jsonl" else b"anchor,positive\na,b\n"
    path = write(before + content + b"\n", name)
    with refused(f"{name}: row 2: ", mask=r"(?<=not JSON: )[^;]*"):
        read_dataset(path, PAIRS)
    assert len(read_dataset(path, skip_faulty=True)) == 1


SCORED = [(*row, score) for row, score in zip(ROWS, (0.5, 2), strict=True)]
SCORED_NAMES = (*NAMES, "score")


def test_further_columns_of_every_format(write, tmp_path):
    table = dict(zip(SCORED_NAMES, zip(*SCORED, strict=True), strict=True)) | {"same": [True, False]}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    rows = [(*row, same) for row, same in zip(SCORED, (True, False), strict=True)]
    names = (*SCORED_NAMES, "same")
    cells = [(*texts, str(score), str(int(same))) for *texts, score, same in rows]
    for path in (write(jsonl(rows, names)), write(csv(cells, names), "rows.csv"), tmp_path / "rows.parquet"):
        found = read_dataset(path, Needs(columns=("score", "same")))
        assert list(found.columns) == ["score", "same"]
        texts, columns = found.take([1, 0])
        assert texts == [list(column) for column in zip(*ROWS[::-1], strict=True)]
        assert {values.dtype for values in columns.values()} == {np.dtype(np.float32)}
        assert {name: values.tolist() for name, values in columns.items()} == {"score": [2, 0.5], "same": [0, 1]}
        assert list(found.texts) == list(NAMES)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64(), pa.uint8(), pa.dictionary(pa.int8(), pa.int64())])
def test_types_of_numbers_in_parquet(tmp_path, kind):
    scores = pa.array([1, 2]).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    scores = scores.dictionary_encode() if pa.types.is_dictionary(kind) else scores
    table = pa.table({"anchor": ["a", "b"], "positive": ["c", "d"], "score": scores})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read_dataset(tmp_path / "rows.parquet", Needs(columns=("score",))).columns["score"].tolist() == [1, 2]


def test_the_hash_covers_further_columns(write):
    path, other = write(jsonl(SCORED, SCORED_NAMES)), write(jsonl([SCORED[0], (*ROWS[1], 3)], SCORED_NAMES), "b.jsonl")
    hashes = [
        read_dataset(file, Needs(columns=columns)).sha256 for file in (path, other) for columns in ((), ("score",))
    ]
    assert hashes[0] == hashes[2] == dataset_of(ROWS, "").sha256
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    "score",
    [
        "x",
        "1",
        None,
        [1],
        float("nan"),
        1e39,
        10**50,
    ],
)
def test_a_row_without_its_number_is_faulty(write, score, refused):
    path = write(jsonl([*SCORED, (*ROWS[0], score)], SCORED_NAMES))
    with refused("row 3: score"):
        read_dataset(path, Needs(columns=("score",)))
    found = read_dataset(path, Needs(columns=("score",)), skip_faulty=True)
    assert (len(found), len(found.columns["score"])) == (2, 2)
    assert len(read_dataset(path)) == 3


def test_a_cell_that_is_not_a_number(write, refused):
    path = write(csv([(*ROWS[0], "1e-3"), (*ROWS[1], "")], SCORED_NAMES), "rows.csv")
    with refused("row 2: score"):
        read_dataset(path, Needs(columns=("score",)))


def test_a_missing_further_column(write, tmp_path, refused):
    pq.write_table(pa.table({"anchor": ["a"], "positive": ["b"], "score": ["1"]}), tmp_path / "rows.parquet")
    for path in (write(jsonl(ROWS)), write(csv(ROWS), "rows.csv")):
        with refused("'rank'"):
            read_dataset(path, Needs(columns=("rank",)))
    with refused("'rank'"):
        read_dataset(tmp_path / "rows.parquet", Needs(columns=("rank",)))
    with refused("'score'"):
        read_dataset(tmp_path / "rows.parquet", Needs(columns=("score",)))


def test_a_missing_file(tmp_path, refused):
    with refused("no.jsonl"):
        read_dataset(tmp_path / "no.jsonl")


# Columns by name


def test_any_number_of_negatives_in_their_order(write, tmp_path):
    names = ("negative_3", "negative", "positive", "negative_2", "anchor", "negative_02")
    rows = [tuple(f"{name} {i}" for name in names) for i in range(2)]
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), tmp_path / "rows.parquet")
    for path in (write(jsonl(rows, names)), write(csv(rows, names), "rows.csv"), tmp_path / "rows.parquet"):
        found = read_dataset(path, PAIRS)
        assert list(found.texts) == ["anchor", "positive", "negative", "negative_2", "negative_3"]
        assert found.take([1])[0] == [[f"{name} 1"] for name in found.texts]
        assert list(read_dataset(path, Needs((2, 4))).texts) == ["anchor", "positive", "negative", "negative_2"]


def test_negatives_are_numbered_consecutively(write, refused):
    path = write(jsonl([("a", "b", "c", "d")], (*NAMES, "negative_3")))
    with refused("'negative_3'", "'negative_2'"):
        read_dataset(path, PAIRS)


def test_all_rows_have_the_same_texts(write, refused):
    pairs, more = jsonl([("a", "b")], NAMES[:2]), jsonl([("a", "b", "c")])
    with refused("row 1: negative", "row 3: negative", "1 more"):
        read_dataset(write(pairs * 4 + more), PAIRS)
    found = read_dataset(write(pairs * 4 + more + pairs + more), PAIRS, skip_faulty=True)
    assert (len(found), list(found.texts)) == (2, list(NAMES))
    assert found.sha256 == dataset_of([("a", "b", "c")] * 2, "").sha256
    assert found.skipped.endswith("and 2 more")


def test_rows_of_anchors_alone(write, refused):
    path = write(jsonl([("a", 1), ("b", 2)], ("anchor", "id")))
    assert {name: list(texts) for name, texts in read_dataset(path).texts.items()} == {"anchor": ["a", "b"]}
    found = read_dataset(path, Needs(ids=True))
    assert found.ids and list(found.ids) == ["1", "2"]
    with refused("'positive'"):
        read_dataset(path, PAIRS)


def test_a_set_renames_columns(write, tmp_path, refused):
    names = ("query", "pos", "sim", "anchor")
    rows = [("a", "b", 0.5, "x"), ("c", "c", 1, "y")]
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), tmp_path / "rows.parquet")
    renamed = {"anchor": "query", "positive": "pos", "score": "sim"}
    scored = Needs((2, 2), ("score",), loss="cosent")
    for path in (write(jsonl(rows, names)), write(csv([map(str, row) for row in rows], names), "rows.csv")):
        found = read_dataset(path, scored, renamed=renamed)
        assert found.take([0, 1]) == ([["a", "c"], ["b", "c"]], {"score": pytest.approx([0.5, 1])})
    with refused("'pos2'", "'cosent'"):
        read_dataset(tmp_path / "rows.parquet", scored, renamed=renamed | {"positive": "pos2"})
    with refused("row 2: sim"):
        read_dataset(write(jsonl(rows[:1], names) + jsonl([rows[0][:2]], names[:2])), scored, renamed=renamed)


def test_equal_texts_in_a_row_are_a_fault_unless_it_has_a_score(write, refused):
    path = write(jsonl([("a", "a", 5)], ("anchor", "positive", "score")))
    assert len(read_dataset(path, Needs((2, 2), ("score",)))) == 1
    with refused("row 1: anchor and positive"):
        read_dataset(path, PAIRS)
    several = write(jsonl([("a", "b", "c", "b")], (*NAMES, "negative_2")))
    with refused("row 1: positive and negative_2"):
        read_dataset(several, PAIRS)


LISTS = [("a", "b", [1, 0.5]), ("c", "d", [0, 2])]


def test_lists_of_numbers_of_every_format(write, tmp_path):
    names = ("anchor", "positive", "score")
    cells = [(anchor, positive, json.dumps(score)) for anchor, positive, score in LISTS]
    for i, kind in enumerate((pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2))):
        columns = dict(zip(names, zip(*LISTS, strict=True), strict=True))
        columns["score"] = pa.array(
            [np.array(each, kind.value_type.to_pandas_dtype()) for each in columns["score"]], kind
        )
        pq.write_table(pa.table(columns), tmp_path / f"{i}.parquet")
    paths = [write(jsonl(LISTS, names)), write(csv(cells, names), "rows.csv"), *sorted(tmp_path.glob("*.parquet"))]
    found = [read_dataset(path, Needs(columns=("score",))) for path in paths]
    for each in found:
        assert each.columns["score"].dtype == np.float32
        assert each.columns["score"].tolist() == [[1, 0.5], [0, 2]]
        assert each.take([1])[1]["score"].tolist() == [[0, 2]]
    assert len({each.sha256 for each in found}) == 1
    flat = write(jsonl([(*row[:2], score) for row in LISTS for score in row[2][:1]], names), "flat.jsonl")
    assert read_dataset(flat, Needs(columns=("score",))).sha256 != found[0].sha256


@pytest.mark.parametrize(
    "score",
    [
        [1],
        1,
        [],
        [1, None],
        [1, "x"],
        [[1], [2, 3]],
        [1, float("inf")],
    ],
)
def test_lists_that_are_not_of_numbers(write, score, refused):
    path = write(jsonl([*LISTS, ("e", "f", score)], ("anchor", "positive", "score")))
    with refused("row 3: score"):
        read_dataset(path, Needs(columns=("score",)))


def test_missing_optional_columns(write, refused):
    path = write(jsonl(ROWS))
    assert read_dataset(path, Needs(optional=("score",))).columns == {}
    some = write(jsonl(ROWS[:1]) + jsonl(SCORED[1:], SCORED_NAMES), "some.jsonl")
    with refused("row 1: score"):
        read_dataset(some, Needs(optional=("score",)))


# Several files


def test_several_files_are_one_set(write, tmp_path, refused):
    write(jsonl(ROWS[:1]), "a.jsonl")
    write(gzip.compress(csv(ROWS[1:])), "b.csv.gz")
    whole = dataset_of(ROWS, "").sha256
    for paths in ([tmp_path / "a.jsonl", str(tmp_path / "b.csv.gz")], f"{tmp_path}/[ab].*", tmp_path):
        assert read_dataset(paths).sha256 == whole
    write(jsonl([("", "b", "c")]), "c.jsonl")
    with refused("c.jsonl: row 1: anchor"):
        read_dataset(tmp_path / "*.*", PAIRS)
    with refused("nothing-*.jsonl"):
        read_dataset(tmp_path / "nothing-*.jsonl")


def test_max_rows(write, tmp_path):
    path = write(jsonl([("", "b", "c"), *ROWS * 3, ("", "b", "c")]))
    found = read_dataset([path, write(b"broken", "b.jsonl")], max_rows=3, skip_faulty=True)
    assert (found.take(range(3))[0][0], len(found)) == ([ROWS[i % 2][0] for i in range(3)], 3)
    assert found.skipped == f"{path}: row 1: anchor is empty"
