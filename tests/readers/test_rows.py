"""Rows out of every kind of file: sound ones, faulty ones with their reasons, and files that are faulty as a whole."""

import errno
import gzip
import io
import json
import re
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_jax import StellaError
from stella_jax.readers import csv_rows, lines, parquet_rows
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.records import RecordReader, read_rows
from stella_jax.readers.rows import Fields, Rejected, Row
from stella_jax.storage.location import Location, locate

FIELDS = Fields()


def rows_of(path: Path, fields: Fields = FIELDS, start: int = 0) -> list:
    [source] = open_inputs([path], fields)
    rows = (source.row(i, record, fields) for i, record in enumerate(source.records(fields, start), start + 1))
    return [row for row in rows if row is not None]


def rows_of_lazily(path: Path) -> Iterator:
    [source] = open_inputs([path], FIELDS)
    return (source.row(i, record, FIELDS) for i, record in enumerate(source.records(FIELDS), 1))


def traced_peak(action: Callable[[], object]) -> int:
    """Most bytes of Python objects there are while something is done."""
    tracemalloc.start()
    action()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def only_row(path: Path, content: bytes, fields: Fields = FIELDS):
    path.write_bytes(content)
    [row] = rows_of(path, fields)
    return row


def packed(name: str, content: bytes) -> bytes:
    """The content as a file of this name has it."""
    if name.endswith(".zst"):
        return pa.Codec("zstd").compress(content, asbytes=True)
    return gzip.compress(content) if name.endswith(".gz") else content


def write_table(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# Sound rows


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.csv.gz", "a.csv.zst", "a.parquet", "A.JSONL"]
)
def test_every_kind_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    ids, texts = ["x", "7", "z"], ["one", 'two, "quoted"\nlines', "Käse 北京 🧀"]
    if name.endswith("parquet"):
        write_table(path, text=texts, other=[1, 2, 3], id=ids)
    elif "csv" in name:
        cells = "id,other,text\r\n" + "".join(
            f'{i},,"{t.replace(chr(34), chr(34) * 2)}"\r\n' for i, t in zip(ids, texts, strict=True)
        )
        path.write_bytes(packed(name, cells.encode()))
    else:
        content = "".join(json.dumps({"text": t, "id": i}) + "\n" for i, t in zip(ids, texts, strict=True)).encode()
        path.write_bytes(packed(name, content))
    assert rows_of(path) == [Row(name, n, i, t) for n, i, t in zip((1, 2, 3), ids, texts, strict=True)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_every_line_of_a_text_file_is_a_row(tmp_path, name):
    path = tmp_path / name
    content = b"one\n\ntwo\r\nlast without end"
    path.write_bytes(packed(name, content))
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


def test_blank_lines_of_csv_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text\na\n\n""\n')
    assert [(row.number, row.text) for row in rows_of(path)] == [(1, "a"), (3, "")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_a_byte_order_mark_is_dropped(tmp_path, name):
    content = {"a.jsonl": b'{"text": "x"}', "a.txt": b"x", "a.csv": b"text\nx\n"}[name]
    assert only_row(tmp_path / name, b"\xef\xbb\xbf" + content).text == "x"


def test_whole_numbers_are_ids_and_empty_strings_texts(tmp_path):
    assert only_row(tmp_path / "a.jsonl", b'{"id": 12, "text": ""}') == Row("a.jsonl", 1, "12", "")
    [row] = rows_of(write_table(tmp_path / "a.parquet", id=[3], text=["t"]))
    assert row.id == "3"


def test_fields_of_other_names(tmp_path):
    row = only_row(tmp_path / "a.jsonl", b'{"id": 1, "key": "k", "body": "b"}', Fields("body", "key"))
    assert (row.id, row.text) == ("k", "b")
    [row] = rows_of(write_table(tmp_path / "a.parquet", key=["k"], body=["b"]), Fields("body", "key"))
    assert (row.id, row.text) == ("k", "b")


STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", STRINGS)
def test_every_type_of_string_column(tmp_path, kind):
    path = write_table(tmp_path / "a.parquet", id=pa.array(["i", "j"]).cast(kind), text=pa.array(["t", "u"]).cast(kind))
    assert [(row.id, row.text) for row in rows_of(path)] == [("i", "t"), ("j", "u")]


def test_a_megabyte_and_a_nul_are_texts(tmp_path):
    word = "x" * 2**20
    assert only_row(tmp_path / "a.jsonl", json.dumps({"text": word}).encode()).text == word
    assert only_row(tmp_path / "a.csv", f"text\n{word}\n".encode()).text == word
    assert only_row(tmp_path / "b.jsonl", b'{"text": "a\\u0000b"}').text == "a\0b"
    assert only_row(tmp_path / "b.csv", b"text\na\0b\n").text == "a\0b"


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 6])
def test_reading_from_the_middle_gives_the_tail(tmp_path, start):
    texts = ["a", "b", "c", "d", "e"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "a.txt").write_text("".join(t + "\n" for t in texts))
    (tmp_path / "a.csv").write_text("text\n" + "".join(t + "\n" for t in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=2)
    for name in ("a.jsonl", "a.txt", "a.csv", "a.parquet"):
        assert [(row.number, row.text) for row in rows_of(tmp_path / name, start=start)] == [
            (i + 1, text) for i, text in enumerate(texts) if i >= start
        ]


def records_of(path: Path, start: int = 0, offset: int | None = None) -> RecordReader:
    [source] = open_inputs([path], FIELDS)
    return source.records(FIELDS, start, offset)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_reading_from_an_offset_gives_the_tail(tmp_path, monkeypatch, name, mark):
    monkeypatch.setattr(lines, "LONGEST", 64)
    content = mark + b"one\n\r\n\n" + b"long" * 50 + b"\ncaf\xc3\xa9\r\n" + b"\xef\xbb\xbfx\nlast without end"
    path = tmp_path / name
    path.write_bytes(packed(name, content))
    records = records_of(path)
    offsets, found = [records.offset], []
    for record in records:
        found.append(str(record))
        offsets.append(records.offset)
    assert found[-1] == "b'last without end'"
    assert offsets == [0, *(len(mark) + end for end in (4, 6, 7, 208, 215, 220, 236))]
    for start, offset in enumerate(offsets):
        tail = records_of(path, start, offset)
        assert tail.offset == offset
        assert [str(record) for record in tail] == found[start:]
        assert tail.offset == offsets[-1]
    first = records_of(path, 3)
    assert (first.offset, next(first) and first.offset) == (None, offsets[4])


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_formats_that_know_no_offsets(tmp_path, name):
    path = write_table(tmp_path / name, text=["a", "b"]) if "parquet" in name else tmp_path / name
    if "csv" in name:
        path.write_bytes(b"text\na\nb\n")
    records = records_of(path, 1, 3)
    assert (records.offset, len(list(records)), records.offset) == (None, 1, None)


def test_an_offset_beyond_a_file_that_was_cut(tmp_path):
    for name in ("a.txt", "a.txt.gz", "a.txt.zst"):
        (tmp_path / name).write_bytes(packed(name, b"a\n"))
        assert list(records_of(tmp_path / name, 5, 10)) == []
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(bytes(10_000))[:-9])
    with pytest.raises(StellaError, match="is cut off after row 5; its gzip stream has no end"):
        list(records_of(tmp_path / "b.txt.gz", 5, 100_000))


# Blank lines


BLANKS = b"\n" * 3000 + b" \t\r\n" * 1000 + b"   "


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_blank_lines_are_passed_over_many_at_a_time(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(packed(name, b'\n{"text": "a"}\n' + BLANKS + b'{"text": "b"}\n' + BLANKS))
    assert list(read_rows(locate(path), FIELDS.columns)) == [(2, {"text": "a"}), (4003, {"text": "b"})]
    records = records_of(path)
    assert (next(records), records.skip_blank(), records.offset) == (b"", 0, 1)
    calls, done = 0, 1
    for _ in records:
        calls, done = calls + 1, done + 1 + records.skip_blank()
        tail = records_of(path, done, records.offset)
        assert next(tail, None) == next(records_of(path, done), None)
    assert (done, calls < 20) == (8004, True)


def test_blank_lines_of_other_formats_are_rows_or_read_one_by_one(tmp_path):
    for name, count in {"a.txt": 3, "a.csv": 2}.items():
        (tmp_path / name).write_bytes(b"text\n\n\n")
        records = records_of(tmp_path / name)
        assert (next(records), records.skip_blank(), len(list(records))) == (
            b"text" if count == 3 else None,
            0,
            count - 1,
        )


def test_gigabytes_of_blank_lines_in_a_small_archive(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * 2**24) * 4 + gzip.compress(b'{"text": "a"}'))
    began = time.monotonic()
    assert [number for number, _ in read_rows(locate(path), FIELDS.columns)] == [2**26 + 1]
    assert time.monotonic() - began < 20
    path.write_bytes(gzip.compress(b"\n" * 2**20)[:-9])
    with pytest.raises(StellaError, match="is cut off after row 1048576;"):
        list(read_rows(locate(path), FIELDS.columns))


# Rows that are set aside


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
def test_faults_of_json_rows(tmp_path, line, row_id, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n')
    before, rejected, after = rows_of(tmp_path / "a.jsonl")
    assert isinstance(before, Row)
    assert isinstance(after, Row)
    assert rejected[:3] == ("a.jsonl", 2, row_id)
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith(reason)


def test_an_id_field_that_is_asked_for_must_be_in_every_row(tmp_path):
    row = only_row(tmp_path / "a.jsonl", b'{"id": 1, "text": "a"}', Fields("text", "key"))
    assert row == Rejected("a.jsonl", 1, None, "key is missing")


def test_a_text_line_of_wrong_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nb\xe4d\ngood\n")
    assert rows_of(tmp_path / "a.txt")[1] == Rejected("a.txt", 2, None, "not UTF-8: byte 0xE4 at byte 1")


def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 2**20)
    (tmp_path / "a.txt").write_bytes(b"a\n" + b"x" * 3 * 2**20 + b"\nb\n")
    a, long, b = rows_of(tmp_path / "a.txt")
    assert long == Rejected("a.txt", 2, None, "longer than 1 MiB without a line end")
    assert (a.text, b.text, b.number) == ("a", "b", 3)


LONG = b"longer " * 200


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("record", [LONG, b"i," + LONG, b'i,"' + LONG + b'"', b'i,"' + LONG + b'"",' + LONG + b'"'])
def test_a_long_line_of_csv_is_not_read_whole(tmp_path, monkeypatch, record, end):
    monkeypatch.setattr(csv_rows, "LONGEST", 100)
    (tmp_path / "a.csv").write_bytes(end.join([b"id,text", b"1,before", record, b"3,after", b""]))
    before, rejected, after = rows_of(tmp_path / "a.csv")
    assert (before.text, after.text, after.number) == ("before", "after", 3)
    assert rejected == Rejected("a.csv", 2, None, "longer than 0 MiB without a line end")


def test_a_long_record_of_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "LONGEST", 100)
    path = tmp_path / "a.csv"
    for record in (b'i,"' + b"line\n" * 100, b'i,"' + LONG, b'i,"a\n' + LONG + b'"', b'i,"a\n' + LONG):
        path.write_bytes(b"id,text\n1,before\n" + record + b"\n3,after\n")
        rows, sentence = rows_before(path)
        assert [row.text for row in rows] == ["before"]
        assert f"{path}: the record at line 3 is longer than 0 MiB; perhaps a quote" in sentence
    for header in (b"id,text" + LONG, b'id,"text' + LONG, b'"' + b"a\n" * 100):
        path.write_bytes(header + b"\n1,a\n")
        assert ": invalid header: it is longer than 0 MiB." in refused(path)


def test_a_line_of_gigabytes_in_a_small_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "LONGEST", 2**20)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text\na\n") + gzip.compress(b"x" * 2**25) * 4 + gzip.compress(b"\nb\n"))
    found: list = []
    assert traced_peak(lambda: found.extend(rows_of(path))) < 2**24
    assert [getattr(row, "text", None) for row in found] == ["a", None, "b"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"i", "has 1 cells where the header has 2"),
        (b"i,a,b", "has 3 cells where the header has 2"),
        (b"i,b\xe4d", "not UTF-8: byte 0xE4"),
        (b'i,"a"b', "not CSV: ',' expected after '\"'"),
        (b",a", "id is empty"),
    ],
)
def test_faults_of_csv_rows(tmp_path, record, reason):
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,before\n" + record + b"\n3,after\n")
    before, rejected, after = rows_of(tmp_path / "a.csv")
    assert (before.text, after.text, after.number) == ("before", "after", 3)
    assert rejected == Rejected("a.csv", 2, None, reason)


def test_faults_of_parquet_rows(tmp_path):
    spoiled = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))
    path = write_table(tmp_path / "a.parquet", text=spoiled, id=["1", "2", "3"])
    assert rows_of(path)[1] == Rejected("a.parquet", 2, None, "not UTF-8: byte 0xFF at byte 0")
    path = write_table(tmp_path / "b.parquet", text=["a", None, "c"], id=pa.array([1, 2, None]))
    assert rows_of(path) == [
        Row("b.parquet", 1, "1", "a"),
        Rejected("b.parquet", 2, "2", "text is null, not a string"),
        Rejected("b.parquet", 3, None, "id is null, not a string or a whole number"),
    ]


def test_a_long_value_of_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "LONGEST", 2**20)
    path = write_table(tmp_path / "a.parquet", text=["a", "x" * (2**20 + 1), "x" * 2**20])
    assert [getattr(row, "reason", None) for row in rows_of(path)] == [None, "longer than 1 MiB", None]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_small_parquet_file_of_large_repeated_values(tmp_path, monkeypatch, compression):
    monkeypatch.setattr(parquet_rows, "BATCH_BYTES", 2**21)
    text = pa.DictionaryArray.from_arrays(pa.array([0, 1, None] * 500, pa.int32()), ["x" * 2**18, "y" * 2**18])
    for name, column in {"a.parquet": text.cast(pa.string()), "b.parquet": text}.items():
        settings = {"compression": compression, "dictionary_pagesize_limit": 2**21}
        pq.write_table(pa.table({"text": column}), tmp_path / name, **settings)
        pool = pa.default_memory_pool()
        before, peak, found = pool.bytes_allocated(), 0, []
        for row in rows_of_lazily(tmp_path / name):
            peak = max(peak, pool.bytes_allocated() - before)
            found.append(row.text[0] if isinstance(row, Row) else None)
        assert found == ["x", "y", None] * 500
        assert peak < 2**23


def test_a_parquet_file_whose_pages_unpack_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "UNPACKED_BYTES", 2**20)
    table = pa.table({"text": ["x" * 2**12] * 2**10, "id": list(range(2**10))})
    for rows in (2**10, 2**6):
        pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False, row_group_size=rows)
        if rows == 2**6:
            assert len(rows_of(tmp_path / "a.parquet")) == 2**10
        else:
            assert "a.parquet: column 'text' has 42" in refused(tmp_path / "a.parquet")


# Files that cannot be read


def write_gzip(path: Path, content: bytes, keep: float) -> Path:
    packed = gzip.compress(content)
    path.write_bytes(packed[: int(len(packed) * keep)])
    return path


def refused(path: Path, fields: Fields = FIELDS) -> str:
    with pytest.raises(StellaError) as error:
        rows_of(path, fields)
    assert str(path) in str(error.value)
    return str(error.value)


def test_no_such_file(tmp_path):
    assert refused(tmp_path / "a.jsonl").endswith("does not exist.")


def test_a_directory(tmp_path):
    assert "the directory holds no file of a supported type" in refused(tmp_path)


@pytest.mark.parametrize("name", ["a.xml", "a", "a.gz", "a.parquet.gz", "a.json"])
def test_unknown_kinds(tmp_path, name):
    (tmp_path / name).touch()
    assert "unsupported file type; supported: .jsonl, .txt, .csv (each also .gz, .zst), .parquet." in refused(
        tmp_path / name
    )


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_utf16(tmp_path, name, mark):
    (tmp_path / name).write_bytes(mark + b"a\0")
    assert "is UTF-16" in refused(tmp_path / name)


def test_truncated_gzip(tmp_path):
    lines = b"".join(b'{"text": "%064x"}\n' % (i * i * 7919**9) for i in range(1000))
    message = refused(write_gzip(tmp_path / "a.jsonl.gz", lines, keep=0.5))
    assert "is cut off after row" in message
    assert 1 <= int(message.split("after row ")[1].split(";")[0]) < 1000


def test_damaged_gzip(tmp_path):
    path = write_gzip(tmp_path / "a.txt.gz", b"line\n" * 1000, keep=1)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the checksum at its end
    path.write_bytes(content)
    assert "is damaged after row 1000: CRC check failed" in refused(path)


def test_gzip_in_name_only(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    assert "is not a valid gzip file" in refused(tmp_path / "a.jsonl.gz")


def rows_before(path: Path) -> tuple[list, str]:
    """The rows that come before a file's fault, and what is said of it."""
    [source] = open_inputs([path], FIELDS)
    rows = []
    with pytest.raises(StellaError) as error:
        rows.extend(source.row(i, record, FIELDS) for i, record in enumerate(source.records(FIELDS), 1))
    return rows, str(error.value)


MANY = [b"%064x %d" % (i * i * 7919**9, i) for i in range(5000)]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_all_that_can_be_had_of_a_compressed_file_that_is_cut_off(tmp_path, name):
    first, second = (packed(name, b"\n".join(part) + b"\n") for part in (MANY[:1000], MANY[1000:]))
    path = tmp_path / name
    path.write_bytes(first + second)
    assert [row.text.encode() for row in rows_of(path)] == MANY, "several frames are one file"
    kind = "gzip" if "gz" in name else "zstd"
    counts = []
    for kept in (len(first) - 1, len(first) + 3, len(first) + len(second) // 2, len(first + second) - 1):
        path.write_bytes((first + second)[:kept])
        rows, sentence = rows_before(path)
        count = len(rows)
        assert sentence == f"{path} is cut off after row {count}; its {kind} stream has no end."
        assert [row.text.encode() for row in rows] == MANY[:count]
        counts.append(count)
    assert counts[1] == 1000
    assert counts == sorted(counts)
    assert counts[2] > 1500
    path.write_bytes(first + second)
    assert [row.text.encode() for row in rows_of(path, start=1000)] == MANY[1000:]


def test_a_damaged_zstd_file_gives_what_comes_before(tmp_path):
    content = b"\n".join(MANY[:1000]) + b"\n"
    (tmp_path / "a.txt.zst").write_bytes(packed(".zst", content) + b"more")
    rows, sentence = rows_before(tmp_path / "a.txt.zst")
    assert len(rows) == 1000
    assert sentence.startswith(f"{tmp_path}/a.txt.zst is damaged after row 1000: ")
    (tmp_path / "b.txt.zst").write_bytes(content)
    assert "b.txt.zst is not a valid zstd file: " in refused(tmp_path / "b.txt.zst")
    (tmp_path / "c.txt.zst").write_bytes(b"")
    assert rows_of(tmp_path / "c.txt.zst") == []


def test_a_disk_that_fails_under_a_zstd_stream(tmp_path, monkeypatch):
    (tmp_path / "a.txt.zst").write_bytes(packed(".zst", b"a\n" * 1000))

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Location, "open", lambda self: Failing())
    with pytest.raises(OSError, match="Input/output error"):
        rows_of(tmp_path / "a.txt.zst")


def test_parquet_in_name_only(tmp_path):
    for content in (b"", b'{"text": "a"}\n', b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "a.parquet").write_bytes(content)
        assert "is not a valid Parquet file" in refused(tmp_path / "a.parquet")


def test_damaged_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{i:050}" for i in range(20_000)]})
    settings = {"use_dictionary": False, "compression": "none", "write_page_checksum": True}
    pq.write_table(table, path, row_group_size=5_000, **settings)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert re.search("is not a valid Parquet file after row 10000: .*checksum", refused(path))


def test_parquet_columns(tmp_path):
    path = write_table(tmp_path / "a.parquet", body=["a"], n=[1])
    assert "has no column 'text'; its columns are body and n." in refused(path)
    assert "has no column 'key'" in refused(path, Fields("body", "key"))
    assert "column 'n' is of type int64, not string." in refused(path, Fields("n"))
    path = write_table(tmp_path / "b.parquet", text=["a"], id=[1.5])
    assert "column 'id' is of type double, not string or integer." in refused(path)


def test_csv_headers(tmp_path):
    path = tmp_path / "a.csv"
    for content, sentence in [
        (b"", "is empty"),
        (b"first text,2\n", "has no column 'text'; its columns are first text and 2."),
        (b"text,text\na,b\n", "has more than one column 'text'"),
        (b"id,text,id\na,b,c\n", "has more than one column 'id'"),
        (b'"text\n', "invalid header"),
    ]:
        path.write_bytes(content)
        assert sentence in refused(path)


def test_a_quote_that_is_never_closed(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text\none\n"two\nthree\nfour\n')
    assert "the quote opened in the record at line 3 is never closed" in refused(tmp_path / "a.csv")


def test_a_text_file_has_no_ids(tmp_path):
    (tmp_path / "a.txt").touch()
    assert "plain text has no column 'key'" in refused(tmp_path / "a.txt", Fields("text", "key"))


# Names


def test_names_tell_inputs_apart(tmp_path):
    paths = [tmp_path / "x" / "a.txt", tmp_path / "y" / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [source.name for source in open_inputs(paths, FIELDS)] == ["x/a.txt", "y/a.txt", "b.txt"]
    with pytest.raises(StellaError, match="is given twice"):
        open_inputs([paths[0], tmp_path / "y" / ".." / "x" / "a.txt"], FIELDS)


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
        return traced_peak(lambda: deque(rows_of_lazily(path), 0))

    assert peak(40_000) < peak(4_000) + 1_000_000  # of 8 MB of text
