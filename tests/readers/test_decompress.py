"""Compressed files: truncated, damaged, several frames, and reading from an offset."""

import errno
import gzip
import io
from pathlib import Path

import pytest
from reading import compressed, records_of, rows_before_error, rows_of, write_table

from stella_jax.readers import lines
from stella_jax.storage.location import Location


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_reading_from_an_offset(tmp_path, monkeypatch, name, mark):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 64)
    content = mark + b"one\n\r\n\n" + b"long" * 50 + b"\ncaf\xc3\xa9\r\n" + b"\xef\xbb\xbfx\nlast without end"
    path = tmp_path / name
    path.write_bytes(compressed(name, content))
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
def test_formats_without_offsets(tmp_path, name):
    path = write_table(tmp_path / name, text=["a", "b"]) if "parquet" in name else tmp_path / name
    if "csv" in name:
        path.write_bytes(b"text\na\nb\n")
    records = records_of(path, 1, 3)
    assert (records.offset, len(list(records)), records.offset) == (None, 1, None)


def test_an_offset_beyond_the_end(tmp_path, refused):
    for name in ("a.txt", "a.txt.gz", "a.txt.zst"):
        (tmp_path / name).write_bytes(compressed(name, b"a\n"))
        assert list(records_of(tmp_path / name, 5, 10)) == []
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(bytes(10_000))[:-9])
    with refused("b.txt.gz", "row 5"):
        list(records_of(tmp_path / "b.txt.gz", 5, 100_000))


def write_gzip(path: Path, content: bytes, keep: float) -> Path:
    packed = gzip.compress(content)
    path.write_bytes(packed[: int(len(packed) * keep)])
    return path


def test_truncated_gzip(tmp_path, check_message):
    lines = b"".join(b'{"text": "%064x"}\n' % (i * i * 7919**9) for i in range(1000))
    rows, message = rows_before_error(write_gzip(tmp_path / "a.jsonl.gz", lines, keep=0.5))
    assert 1 <= rows[-1].number < 1000
    check_message(message, "a.jsonl.gz", f"row {rows[-1].number} (", mask=r"\d+")


def test_damaged_gzip(tmp_path, refused):
    path = write_gzip(tmp_path / "a.txt.gz", b"line\n" * 1000, keep=1)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    with refused("a.txt.gz", "row 1000 (CRC check failed", mask=r"\(.*\)"):
        rows_of(path)


def test_gzip_in_name_only(tmp_path, refused):
    (tmp_path / "a.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    with refused("a.jsonl.gz", mask=r"\(.*\)"):
        rows_of(tmp_path / "a.jsonl.gz")


MANY = [b"%064x %d" % (i * i * 7919**9, i) for i in range(5000)]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_truncated_file_gives_all_rows_before_its_end(tmp_path, name, check_message):
    first, second = (compressed(name, b"\n".join(part) + b"\n") for part in (MANY[:1000], MANY[1000:]))
    path = tmp_path / name
    path.write_bytes(first + second)
    assert [row.text.encode() for row in rows_of(path)] == MANY, "several frames in one file"
    counts = []
    for kept in (len(first) - 1, len(first) + 3, len(first) + len(second) // 2, len(first + second) - 1):
        path.write_bytes((first + second)[:kept])
        rows, sentence = rows_before_error(path)
        count = len(rows)
        check_message(sentence, f"{path}: ", f"row {count} (", mask=r"\d+")
        assert [row.text.encode() for row in rows] == MANY[:count]
        counts.append(count)
    assert counts[1] == 1000
    assert counts == sorted(counts)
    assert counts[2] > 1500
    path.write_bytes(first + second)
    assert [row.text.encode() for row in rows_of(path, start=1000)] == MANY[1000:]


def test_a_damaged_zstd_file_gives_the_rows_before_the_fault(tmp_path, refused, check_message):
    content = b"\n".join(MANY[:1000]) + b"\n"
    (tmp_path / "a.txt.zst").write_bytes(compressed(".zst", content) + b"more")
    rows, sentence = rows_before_error(tmp_path / "a.txt.zst")
    assert len(rows) == 1000
    check_message(sentence, f"{tmp_path}/a.txt.zst: ", "row 1000 (", mask=r"\(.*\)")
    (tmp_path / "b.txt.zst").write_bytes(content)
    with refused("b.txt.zst", mask=r"\(.*\)"):
        rows_of(tmp_path / "b.txt.zst")
    (tmp_path / "c.txt.zst").write_bytes(b"")
    assert rows_of(tmp_path / "c.txt.zst") == []


def test_a_disk_error_under_a_zstd_stream(tmp_path, monkeypatch):
    (tmp_path / "a.txt.zst").write_bytes(compressed(".zst", b"a\n" * 1000))

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Location, "open", lambda self: Failing())
    with pytest.raises(OSError, match="Input/output error"):
        rows_of(tmp_path / "a.txt.zst")
