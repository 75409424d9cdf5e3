"""The scan by many processes: what it finds is what one finds, and none of them outlives it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import content, runs

from stella_jax import StellaError
from stella_jax.job import crew, scan
from stella_jax.job.duplicates import Duplicates, Runs
from stella_jax.job.hashing import Identity
from stella_jax.job.job import Job, open_job
from stella_jax.job.progress import Progress
from stella_jax.job.reader import Reader
from stella_jax.job.rows import Fields, Rejected
from stella_jax.job.scan import scan_sources
from stella_jax.job.scanner import Counted, Scanner
from stella_jax.job.settings import Settings
from stella_jax.job.source import open_sources
from stella_jax.job.stop import Stopped
from stella_jax.job.store import open_store

FIELDS = Fields()
MARK = b"\xef\xbb\xbf"


def lines_of(*rows: dict | str) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


FILES: dict[str, bytes] = {
    "a.jsonl": lines_of({"id": 1, "text": "one"}, "", {"id": 2, "text": "two"}, {"id": 1, "text": "again"}),
    "b.jsonl": b"",
    "c.jsonl.gz": gzip.compress(MARK + lines_of(*({"id": f"c{i}", "text": "Käse"} for i in range(9)))),
    "d.txt": MARK + b"first\r\n\nno end",
    "e.txt": MARK,
    "f.txt.gz": gzip.compress(b""),
    "g.csv": MARK + b'id,text\n2,"two\nlines"\n\ng2,b\xe4d\ng3,"a"b\n7,seven\n',
    "h.csv.gz": gzip.compress(b"text,id\nx,7\n"),
    "i.jsonl": lines_of("", " ", ""),
    "j.jsonl": lines_of({"id": 5}, "nonsense", {"id": "j", "text": "\ud800"}, {"id": "c3", "text": "last"}),
}


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    table = pa.table({"id": ["c1", None, "k"], "text": ["p", "q", "r"]})
    pq.write_table(table, folder / "k.parquet")
    pq.write_table(table.slice(0, 0), folder / "l.parquet")
    return sorted(folder.iterdir())


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[subprocess.Popen]]:
    """Makes scans run in so many processes; returns those that are started from then on."""

    def start(count: int) -> list[subprocess.Popen]:
        started: list[subprocess.Popen] = []

        def popen(*arguments, **options) -> subprocess.Popen:
            started.append(subprocess.Popen(*arguments, **options))
            return started[-1]

        monkeypatch.setattr(scan, "cpu_count", lambda: count)
        monkeypatch.setattr(scan, "BYTES_A_PROCESS", 1)
        monkeypatch.setattr(crew, "Popen", popen)
        return started

    return start


def planned(folder: Path, part_rows: int, *paths: Path) -> Job:
    store = open_store(folder)
    return open_job(store, paths, Settings(FIELDS, "", False, part_rows), {}, 1.0, Progress(store))


def refused(tmp_path: Path, inputs: list[Path]) -> str:
    with pytest.raises(StellaError) as error:
        scan_sources(open_sources(inputs, FIELDS), FIELDS, 3, tmp_path, lambda rows: None)
    return str(error.value)


# What is found


@pytest.mark.parametrize("part_rows", [1, 4, 100])
def test_many_processes_find_what_one_finds(tmp_path, inputs, force, part_rows):
    force(1)
    alone = planned(tmp_path / "alone", part_rows, *inputs)
    processes = force(3)
    job = planned(tmp_path / "many", part_rows, *inputs)
    assert len(processes) == 3
    assert content(tmp_path / "many") == content(tmp_path / "alone")
    reader = Reader(dict(enumerate(job.sources)), FIELDS)
    rows = [row for part in job.parts for row in job.read(reader, part)]
    assert len(rows) == job.plan.rows == sum(entry["rows"] for entry in alone.fields["inputs"])
    assert sum(isinstance(row, Rejected) for row in rows) == job.fields["rejected"] == 11


def write_large(folder: Path) -> list[Path]:
    """Two files of ten thousand rows, that have much in common, and a small one between them."""
    folder.mkdir()
    rows = [{"id": f"r{i // 3 * 5}", "text": f"{i} " + "x" * 1200} for i in range(10_000)]
    lines = [*map(json.dumps, rows)]
    lines[7000], lines[9000] = "", "broken"
    (folder / "a.jsonl").write_bytes(MARK + "\r\n".join(lines).encode())
    (folder / "b.txt").write_text("one\ntwo")
    pq.write_table(pa.Table.from_pylist(rows), folder / "c.parquet", row_group_size=900)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("part_rows", [1111, 30_000])
def test_pieces_of_a_large_input_are_what_it_is_as_a_whole(tmp_path, force, part_rows):
    paths = write_large(tmp_path / "in")
    planned(tmp_path / "whole", part_rows, *paths)
    for count, name in ((1, "pieces"), (3, "processes")):
        processes = force(count)
        planned(tmp_path / name, part_rows, *paths)
        assert content(tmp_path / name) == content(tmp_path / "whole")
    assert len(processes) == 3


@pytest.mark.parametrize(("start", "part_rows", "cuts"), [(0, 10, [40, 70, 100]), (25, 10, [35, 65]), (0, 99, [99])])
def test_an_input_is_cut_where_parts_begin(monkeypatch, start, part_rows, cuts):
    monkeypatch.setattr(scan, "BYTES_A_PROCESS", 100)
    marks = [(0, 0), (15, 50), (31, 101), (40, 190), (62, 205), (70, 240), (100, 310)]
    pieces = scan._pieces(Counted(Identity(320, ""), 101, marks), start, part_rows)
    assert [piece.first for piece in pieces] == [0, *cuts]
    assert [piece.stop for piece in pieces] == [*cuts, sys.maxsize]
    assert all((piece.mark, piece.offset) == max(m for m in marks if m[0] <= piece.first) for piece in pieces)


@pytest.mark.parametrize("change", [lambda data: data[:-2000], lambda data: data + data[-2000:]])
def test_a_large_input_that_changes_between_the_passes(tmp_path, force, monkeypatch, change):
    path, count = write_large(tmp_path / "in")[0], Scanner.count

    def later(self: Scanner, source):
        try:
            return count(self, source)
        finally:
            path.write_bytes(change(path.read_bytes()))

    monkeypatch.setattr(Scanner, "count", later)
    force(1)
    assert refused(tmp_path, [path]).endswith("/a.jsonl changed while it was read; run the command again later.")


def test_ticks_count_the_records(tmp_path, inputs, force):
    for count in (1, 3):
        force(count)
        ticks: list[int] = []
        with scan_sources(open_sources(inputs, FIELDS), FIELDS, 3, tmp_path, ticks.append) as found:
            assert sum(ticks) == sum(scanned.records for scanned in found.inputs)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_first_fault_is_that_of_the_first_input(tmp_path, inputs, force):
    force(3)
    with scan_sources(open_sources(inputs[::-1], FIELDS), FIELDS, 3, tmp_path, lambda rows: None) as found:
        assert found.first_fault == Rejected("k.parquet", 2, None, "id is null, not a string or a whole number")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "c.jsonl.gz": lambda data: data[:-12],
    "d.txt": lambda data: b"\xff\xfea\0",
    "g.csv": lambda data: data + b'8,"open\n',
    "h.csv.gz": lambda data: b"text,id\n",
    "k.parquet": lambda data: data[:-9],
}


@pytest.mark.parametrize("names", [("c.jsonl.gz",), ("k.parquet", "g.csv", "d.txt"), ("k.parquet", "h.csv.gz")])
def test_of_damaged_inputs_the_first_is_named_with_its_row(tmp_path, inputs, force, names):
    for path in inputs:
        if path.name in names:
            path.write_bytes(DAMAGE[path.name](path.read_bytes()))
    force(1)
    sentence = refused(tmp_path, inputs)
    assert min(names) in sentence
    processes = force(3)
    assert refused(tmp_path, inputs) == sentence
    assert all(process.returncode for process in processes)


def test_inputs_without_a_sound_row(tmp_path, force):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(lines_of("", {"text": 1}))
    force(2)
    assert refused(tmp_path, paths).endswith("a.jsonl:2, the first: text is 1, not a string.")
    for path in paths:
        path.write_bytes(b"")
    assert refused(tmp_path, paths) == "the inputs hold no rows."


def test_an_input_that_changes_between_the_passes(tmp_path, inputs, monkeypatch):
    read = Scanner.read

    def later(self: Scanner, source, start, piece):
        with Path(source.location.given).open("ab") as file:
            file.write(lines_of({"text": "more"}) if source.name == "a.jsonl" else b"")
        return read(self, source, start, piece)

    monkeypatch.setattr(Scanner, "read", later)
    assert refused(tmp_path, inputs).endswith("/a.jsonl changed while it was read; run the command again later.")


def test_an_input_that_could_not_be_read_once(tmp_path, inputs, monkeypatch):
    def unlucky(self: Scanner, source):
        raise StellaError("no answer.")

    monkeypatch.setattr(Scanner, "count", unlucky)
    assert refused(tmp_path, inputs) == "no answer."


# Processes


@pytest.mark.parametrize(
    ("kind", "sizes", "cores", "count"),
    [
        ("txt", [95], 8, 2),
        ("txt", [10, 10], 8, 1),
        ("txt", [40, 31], 8, 2),
        ("txt", [40] * 9, 4, 4),
        ("parquet", [1000, 0], 8, 8),
        ("txt", [400] * 3, 1, 1),
        ("txt", [], 8, 1),
        ("txt.gz", [1000], 8, 1),
        ("csv", [1000, 0], 8, 2),
    ],
)
def test_as_many_processes_as_pay(tmp_path, monkeypatch, kind, sizes, cores, count):
    paths = [tmp_path / f"{i}.{kind}" for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(bytes(size))
    monkeypatch.setattr(scan, "cpu_count", lambda: cores)
    monkeypatch.setattr(scan, "BYTES_A_PROCESS", 32)
    assert scan._processes(open_sources(paths, FIELDS)) == count


def test_a_process_that_is_killed_is_a_sentence(tmp_path, inputs, force):
    processes = force(2)

    def kill(rows: int) -> None:
        for process in processes:
            process.kill()
            process.wait()

    with pytest.raises(StellaError, match=r"^a process that read .* was killed by signal 9, perhaps for"):
        scan_sources(open_sources(inputs, FIELDS), FIELDS, 3, tmp_path, kill)


def test_a_process_that_cannot_start_is_a_sentence(tmp_path, inputs, force, monkeypatch, capfd):
    processes = force(2)
    monkeypatch.setattr(crew, "CODE", "raise SystemExit(3)")
    assert " ended with exit code 3; run the same command again." in refused(tmp_path, inputs)
    assert all(process.returncode is not None for process in processes)


@pytest.mark.parametrize("end", [KeyboardInterrupt, Stopped, StellaError("a full disk")])
def test_no_process_is_left_when_this_one_stops(tmp_path, inputs, force, end):
    processes = force(3)

    def stop(rows: int) -> None:
        raise end

    with pytest.raises(type(end) if isinstance(end, Exception) else end):
        scan_sources(open_sources(inputs, FIELDS), FIELDS, 3, tmp_path, stop)
    assert len(processes) == 3
    assert all(process.returncode is not None for process in processes)


PARENT = """
import os, sys, time
from pathlib import Path
from stella_jax.job import crew, scan
from stella_jax.job.rows import Fields
from stella_jax.job.source import open_sources

def popen(*arguments, popen=crew.Popen, **options):
    process = popen(*arguments, **options)
    print(process.pid, flush=True)
    return process

def tick(rows):
    print("at work", flush=True)
    time.sleep(600)

crew.Popen = popen
scan.cpu_count, scan.BYTES_A_PROCESS = lambda: 2, 1
scan.scan_sources(open_sources(sys.argv[2:], Fields()), Fields(), 3, Path(sys.argv[1]), tick)
"""


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="asks Linux which processes there are")
def test_no_process_or_file_is_left_when_this_one_is_killed(tmp_path, inputs):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", PARENT, str(scratch), *map(str, inputs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert parent.stdout.readline() == "at work\n"
        assert all(map(runs, pids))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, pids))
    assert not os.listdir(scratch)


def test_a_process_that_reads_holds_no_device():
    code = "import stella_jax.job.crew, sys; print({'jax', 'flax', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"set()\n"


# Ids


def test_runs_of_ids_from_several_files_in_any_order(tmp_path):
    found = Duplicates(tmp_path)
    files = [found.file(), found.file()]
    runs = [Runs(file) for file in files]
    for position, row_id in [(7, "a"), (3, "b"), (9, "b"), (0, "c")]:
        runs[position % 2].add(row_id, position)
    for position, row_id in [(5, "a"), (1, "b"), (6, "d")]:
        found.add(row_id, position)
    for file, run in zip(files, runs, strict=True):
        found.take(file, run.end())
    assert found.find() == 3
    assert found.firsts(0, 10).tolist() == [-1, -1, -1, 1, -1, -1, -1, 5, -1, 1]
    found.close()
