"""What is decided before a job: which ids repeat, and which rows make which part."""

import gc
import json
import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_jax import StellaError
from stella_jax.job import duplicates
from stella_jax.job.duplicates import Duplicates
from stella_jax.job.job import Job, open_job
from stella_jax.job.plan import Span, plan_parts
from stella_jax.job.progress import Progress
from stella_jax.job.reader import Reader
from stella_jax.job.rows import Fields, Rejected, Row
from stella_jax.job.scan import Scan, scan_sources
from stella_jax.job.settings import Settings
from stella_jax.job.source import open_sources
from stella_jax.job.store import open_store

FIELDS = Fields()


def scan(tmp_path: Path, *paths: Path) -> Scan:
    return scan_sources(open_sources(paths, FIELDS), FIELDS, 3, tmp_path, lambda rows: None)


def planned(folder: Path, part_rows: int, *paths: Path) -> Job:
    """The job over these files, planned into a folder beside them."""
    store = open_store(folder / "out")
    return open_job(store, paths, Settings(FIELDS, "", False, part_rows), {}, 1.0, Progress(store))


def write_rows(path: Path, *rows: dict | None) -> Path:
    path.write_text("".join((json.dumps(row) if row else "") + "\n" for row in rows))
    return path


# Parts


def test_parts_cross_inputs():
    parts = plan_parts([3, 0, 4, 1], 3)
    assert [part.name for part in parts] == ["part-00000", "part-00001", "part-00002"]
    assert [part.spans for part in parts] == [
        (Span(0, 0, 3),),
        (Span(2, 0, 3),),
        (Span(2, 3, 4), Span(3, 0, 1)),
    ]


@given(st.lists(st.integers(0, 20), max_size=8), st.integers(1, 9))
def test_parts_cover_every_record_once_in_order(records, part_rows):
    parts = plan_parts(records, part_rows)
    covered = [(span.input, i) for part in parts for span in part.spans for i in range(span.start, span.stop)]
    assert covered == [(number, i) for number, count in enumerate(records) for i in range(count)]
    sizes = [sum(span.stop - span.start for span in part.spans) for part in parts]
    assert all(size == part_rows for size in sizes[:-1])
    assert all(0 < size <= part_rows for size in sizes)


def test_names_of_very_many_parts_sort_in_order():
    names = [part.name for part in plan_parts([100_001], 1)]
    assert names == sorted(names)
    assert names[0] == "part-000000"


# Repeated ids


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 50))
def test_duplicates_are_what_a_dictionary_finds(tmp_path_factory, ids, run_rows):
    expected, seen = [], {}
    for position, row_id in enumerate(ids):
        expected.append(seen.setdefault(row_id, position))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "RUN_ROWS", run_rows)
        found = Duplicates(tmp_path_factory.getbasetemp())
        for position, row_id in enumerate(ids):
            found.add(str(row_id), position)
        assert found.find() == len(ids) - len(seen)
    firsts = found.firsts(0, len(ids))
    assert [i if first < 0 else first for i, first in enumerate(firsts)] == expected
    assert [*found.firsts(3, 7)] == [*firsts[3:7], *[-1] * 4][:4]
    found.close()


def test_duplicates_leave_nothing_in_the_folder(tmp_path):
    found = Duplicates(tmp_path)
    found.add("a", 0)
    found.find()
    assert not list(tmp_path.iterdir())
    found.close()


def test_a_full_disk_is_told_once_and_leaves_no_file_open(tmp_path):
    found = Duplicates(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, found.file().fileno())
    os.dup2(full, found._own.fileno())
    os.close(full)
    found.add("a", 0)
    with pytest.raises(OSError, match="No space left on device"):
        found.find()
    found._files[-1].write(b"what was not written yet")
    found.close()
    gc.collect()  # a file that is still open would warn


def test_finding_duplicates_takes_no_more_memory_for_more_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "RUN_ROWS", 1000)

    def peak(count: int) -> int:
        tracemalloc.start()
        found = Duplicates(tmp_path)
        for position in range(count):
            found.add(str(position), position)
        found.find()
        found.firsts(0, 100)
        found.close()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1000)
    # What grows is where the slices of each run begin: 2 KB a run, here 1000 rows, in earnest 262144.
    assert peak(20_000) - peak(2_000) < 18 * 2_500 + 10_000


# The scan


def test_a_scan_counts_and_hashes(tmp_path):
    a = write_rows(tmp_path / "a.jsonl", {"text": "one"}, None, {"text": 2}, {"text": "three"})
    b = write_rows(tmp_path / "b.jsonl")
    with scan(tmp_path, a, b) as found:
        assert [(i.records, i.rows, i.faulty, i.size) for i in found.inputs] == [
            (4, 3, 1, a.stat().st_size),
            (0, 0, 0, 0),
        ]
        assert found.parts["rows"].tolist() == [2, 1]
        assert found.parts["offset"].tolist() == [0, a.read_text().index('{"text": "three"}')]
        assert found.parts["digest"][0].tobytes() != found.parts["digest"][1].tobytes()
        assert found.inputs[1].sha256 == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [([], "the inputs hold no rows."), ([{"text": 1}, {"body": ""}], "a.jsonl:1, the first: text is 1, not a string.")],
)
def test_a_job_without_a_sound_row_is_refused(tmp_path, rows, sentence):
    with pytest.raises(StellaError) as error:
        scan(tmp_path, write_rows(tmp_path / "a.jsonl", *rows))
    assert str(error.value).endswith(sentence)


def read_all(job: Job, parts: Iterable[int] | None = None) -> list:
    reader = Reader(dict(enumerate(job.sources)), FIELDS)
    numbers = range(len(job.parts)) if parts is None else parts
    return [row for number in numbers for row in job.read(reader, job.parts[number])]


@pytest.mark.parametrize("part_rows", [1, 2, 3, 100])
def test_the_second_of_two_equal_ids_is_rejected(tmp_path, part_rows):
    a = write_rows(
        tmp_path / "a.jsonl", {"id": 1, "text": None}, None, {"id": 1, "text": "a"}, {"id": "1", "text": "b"}
    )
    b = write_rows(tmp_path / "b.jsonl", {"id": 2, "text": "c"}, {"id": 1, "text": "d"})
    job = planned(tmp_path, part_rows, a, b)
    assert job.fields["rejected"] == 3
    assert read_all(job) == [
        Rejected("a.jsonl", 1, "1", "text is null, not a string"),
        Row("a.jsonl", 3, "1", "a"),
        Rejected("a.jsonl", 4, "1", "duplicate id, first seen at a.jsonl:3"),
        Row("b.jsonl", 1, "2", "c"),
        Rejected("b.jsonl", 2, "1", "duplicate id, first seen at a.jsonl:3"),
    ]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 7), st.data())
def test_any_parts_in_any_order_read_what_is_theirs(tmp_path_factory, counts, part_rows, data):
    folder = tmp_path_factory.mktemp("rows")
    rows = [[{"text": f"{i}:{j}"} for j in range(count)] for i, count in enumerate(counts)]
    paths = [write_rows(folder / f"{i}.jsonl", *inputs) for i, inputs in enumerate(rows)]
    texts = [f"{i}:{j}" for i, count in enumerate(counts) for j in range(count)]
    if not texts:
        return
    job = planned(folder, part_rows, *paths)
    chosen = data.draw(st.lists(st.integers(0, len(job.parts) - 1), max_size=6))
    expected = [text for i in chosen for text in texts[i * part_rows : (i + 1) * part_rows]]
    assert [row.text for row in read_all(job, chosen)] == expected


def test_an_input_that_became_shorter_is_noticed(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"})
    job = planned(tmp_path, 5, path)
    write_rows(path, {"text": "a"})
    with pytest.raises(StellaError, match="has become shorter"):
        read_all(job)


def test_an_input_that_changed_under_way_is_noticed(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", *({"text": f"text {i}"} for i in range(9)))
    job = planned(tmp_path, 3, path)
    path.write_text(path.read_text().replace("text 4", "Text 4"))
    assert len(read_all(job, [0, 2])) == 6
    with pytest.raises(StellaError, match=r"the rows of part-00001 in .*a\.jsonl are not those that the job was"):
        read_all(job, [1])


def test_a_large_plan_is_quick_and_small():
    tracemalloc.start()
    parts = plan_parts([10_000_000] * 100, 10_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(parts) == 100_000
    assert most < 2**27
    assert np.unique([part.name for part in parts]).size == len(parts)
