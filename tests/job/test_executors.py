"""A job by several processes: shares, deaths, other numbers of processes at a rerun, and always the same bytes."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable
from io import BytesIO
from itertools import groupby
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from jobs import (
    content,
    embed_command,
    environment,
    free_port,
    journal,
    leftovers,
    running,
    struck,
    wait_for_lines,
    write_corpus,
)

from stella_jax import Stella
from stella_jax.cli import main
from stella_jax.job import executors, lookout, progress
from stella_jax.job import job as job_module
from stella_jax.job import run as run_module
from stella_jax.job.executors import _piece
from stella_jax.job.hosts import Hosts
from stella_jax.job.plan import plan_parts
from stella_jax.job.progress import Summary
from stella_jax.job.request import Request
from stella_jax.job.rows import Fields
from stella_jax.job.run import Running, run_job
from stella_jax.job.settings import Settings
from stella_jax.job.store import LocalStore, open_store

TEXTS = [f"{'tea ' * (i % 5)}{i}" for i in range(60)]
SETTINGS = Settings(Fields(), prompt="", normalize=False, part_rows=3)
ORIGIN = {"model": "tiny", "revision": None}
PARTS = ("--part-rows", "3")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "a.jsonl", TEXTS)


@pytest.fixture
def alone(tiny: Stella, corpus: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one process writes."""
    run_job(tiny, ORIGIN, [corpus], tmp_path / "alone", SETTINGS)
    return content(tmp_path / "alone")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(job_module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(executors, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


class Upload(MemoryFile):
    """An object that appears when it is whole."""

    def close(self) -> None:
        self.commit()


@pytest.fixture(autouse=True)
def whole_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has fsspec's memory:// be as a real store is: nobody sees an object amid its upload, or reads with another."""

    def opened(system: MemoryFileSystem, path: str, mode: str = "rb", **options: object) -> BytesIO:
        path = system._strip_protocol(path)
        if mode == "wb":
            return Upload(system, path)
        if path not in system.store:
            raise FileNotFoundError(path)
        return BytesIO(system.store[path].getvalue())

    def pipe(system: MemoryFileSystem, path: str, value: bytes, **options: object) -> None:
        MemoryFile(system, system._strip_protocol(path), value).commit()

    monkeypatch.setattr(MemoryFileSystem, "_open", opened)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe)


def run(tiny: Stella, corpus: Path | str, out: Path | str, index: int, count: int) -> Summary:
    return run_job(tiny, ORIGIN, [corpus], out, SETTINGS, Running(hosts=Hosts(index, count)))


def run_together(tiny: Stella, corpus: Path, out: Path | str, indices: Iterable[int], count: int) -> dict[int, Summary]:
    """Processes of a job, as threads."""
    found: dict[int, Summary] = {}

    def one(index: int) -> None:
        found[index] = run(tiny, corpus, out, index, count)

    threads = [threading.Thread(target=one, args=(index,)) for index in indices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("place", ["{}/out", "memory://{}/out"])
def test_many_processes_write_what_one_does(tiny, corpus, tmp_path, alone, count, place):
    out = place.format(tmp_path)
    found = run_together(tiny, corpus, out, range(count), count)
    assert sorted(found) == [*range(count)]
    assert found[0].job_rows == 60
    assert found[1].job_rows is None
    assert sum(summary.rows for summary in found.values()) >= 60
    assert content(out) == alone
    assert all(open_store(out).size(f"progress-{i}.jsonl") for i in range(1, count))


def test_one_of_many_does_the_work_of_those_that_never_come(tiny, corpus, tmp_path, alone):
    assert run(tiny, corpus, tmp_path / "out", 0, 4).rows == 60
    assert content(tmp_path / "out") == alone


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead are given up soon, and the living say so often."""
    monkeypatch.setattr(lookout, "PATIENCE", 1.0)
    monkeypatch.setattr(lookout, "STOPPED_PATIENCE", 1.0)
    monkeypatch.setattr(LocalStore, "journal_seconds", 0.1)


def plan_and_die(tiny: Stella, corpus: Path, out: Path, count: int) -> None:
    """All that process 0 does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors.Worker, "run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tiny, corpus, out, 0, count)


def test_others_end_when_process_0_has_closed_the_job(tiny, corpus, tmp_path, alone):
    out = tmp_path / "out"
    run(tiny, corpus, out, 0, 2)
    assert str(run(tiny, corpus, out, 1, 2)).startswith("0 rows embedded by this process")
    run(tiny, corpus, out, 0, 3)
    assert content(out) == alone


def test_the_job_of_a_dead_process_0_is_closed_by_the_next(tiny, corpus, tmp_path, alone, watchful):
    out = tmp_path / "out"
    plan_and_die(tiny, corpus, out, 3)
    found = run_together(tiny, corpus, out, (1, 2), 3)
    assert 60 in {summary.job_rows for summary in found.values()}
    assert content(out) == alone


@pytest.mark.parametrize("place", ["{}/out", "memory://{}/out"])
def test_a_job_that_many_close_at_once_is_the_same(tiny, corpus, tmp_path, alone, monkeypatch, place):
    out = place.format(tmp_path)
    monkeypatch.setattr(lookout.Lookout, "leads", lambda *_: True)
    found = run_together(tiny, corpus, out, range(6), 6)
    assert {summary.job_rows for summary in found.values()} == {60}
    assert content(out) == alone
    assert leftovers(tmp_path) == []


def test_who_loads_the_model_shows_the_others_that_it_lives(corpus, tmp_path, monkeypatch):
    out, loaded, hashed = tmp_path / "out", Request.load, run_module.fingerprint_of
    monkeypatch.setattr(progress, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(LocalStore, "journal_seconds", 0.0)

    def load(request):
        wait_for_lines(out, 3)
        return loaded(request)

    def fingerprint_of(*arguments):
        wait_for_lines(out, len(journal(out)) + 3)
        return hashed(*arguments)

    monkeypatch.setattr(Request, "load", load)
    monkeypatch.setattr(run_module, "fingerprint_of", fingerprint_of)
    command = embed_command([corpus], out, *PARTS, "--executor", "distributed", "--processes", "2", "--process", "0")
    assert main(command[3:]) == 0
    phases = [line["phase"] for line in journal(out)]
    assert [phase for phase, _ in groupby(phases)][:5] == ["planning", "loading", "planning", "loading", "planning"]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("counts", [(2, 4, 1), (4, 1, 2), (1, 2, 2)])
def test_a_rerun_may_have_another_number_of_processes(tiny, corpus, tmp_path, alone, monkeypatch, counts):
    out, sound, calls = tmp_path / "out", os.replace, iter(range(10**9))

    def replace(*paths):
        if next(calls) in (11, 30):
            raise Killed
        return sound(*paths)

    monkeypatch.setattr(os, "replace", replace)
    for count in counts[:-1]:
        with pytest.raises(Killed):
            run(tiny, corpus, out, 0, count)
    assert 3 < len(list((out / "receipts").iterdir())) < 20
    run_together(tiny, corpus, out, range(counts[-1]), counts[-1])
    assert content(out) == alone
    assert leftovers(out) == []


def test_helpers_take_different_pieces_and_leave_the_first():
    parts = plan_parts([10], 1)
    pieces = [[part.number for part in _piece(parts, Hosts(i, 3))] for i in range(3)]
    assert pieces == [[2, 3, 4], [5, 6], [7, 8, 9]]
    assert [_piece(parts[:1], Hosts(i, 3)) for i in range(3)] == [parts[:1]] * 3
    assert [part.number for part in _piece(parts[:2], Hosts(2, 3))] == [1]


# Processes in earnest


def end(command: list[str], cache: Path) -> subprocess.CompletedProcess:
    """What a command ends with."""
    options = {"env": environment(cache), "capture_output": True, "text": True}
    return subprocess.run(command, check=False, timeout=120, **options)


def test_the_parts_of_a_killed_process_are_taken_over(tiny, corpus, tmp_path, alone, monkeypatch):
    out = tmp_path / "out"
    plan_and_die(tiny, corpus, out, 2)
    command = embed_command([corpus], out, *PARTS, "--executor", "distributed", "--processes", "2", "--process", "1")
    ended = end(struck(command, "os:replace", 6), tmp_path / "cache")
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGKILL, "", "")
    done = {path.name: path.stat().st_mtime_ns for path in (out / "receipts").iterdir()}
    assert {"part-00001.json", "part-00003.json"} <= {*done}
    assert leftovers(out)
    held = journal(out, 1)[-1]["open"]
    assert held
    monkeypatch.setattr(lookout, "PATIENCE", 5.0)
    monkeypatch.setattr(LocalStore, "journal_seconds", 0.1)
    summary = run(tiny, corpus, out, 0, 2)
    assert content(out) == alone
    assert leftovers(out) == []
    assert summary.rows == 60 - 3 * len(done)
    assert done == {name: (out / "receipts" / name).stat().st_mtime_ns for name in done}
    assert "waiting" in [line["phase"] for line in journal(out)]  # for what the dead seemed to hold
    assert all(line["rows_left"] >= 0 for line in journal(out))


def test_sigterm_to_a_real_process(tiny, corpus, tmp_path, alone):
    out = tmp_path / "out"
    command = embed_command([corpus], out, *PARTS)
    ended = end(struck(command, "os:replace", 7, signal.SIGTERM), tmp_path / "cache")
    assert (ended.returncode, ended.stdout) == (143, "")
    assert ended.stderr == "stella-jax: stopped by SIGTERM; finished parts are kept, and the same command goes on\n"
    assert leftovers(out) == []
    assert 2 < len(list((out / "receipts").iterdir())) < 15
    assert main(command[3:]) == 0
    assert content(out) == alone


def test_two_processes_meet_on_loopback(corpus, tmp_path, alone):
    out, coordinator = tmp_path / "out", f"127.0.0.1:{free_port()}"
    together = ["--executor", "distributed", "--processes", "2", "--coordinator", coordinator, "--process"]
    commands = [embed_command([corpus], out, *PARTS, *together, str(i)) for i in range(2)]
    pipe = subprocess.PIPE
    with running(commands, env=environment(tmp_path / "cache"), stdout=pipe, stderr=pipe, text=True) as processes:
        ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [end[1:] for end in ends] == [("", 0), ("", 0)]
    assert re.search(r"out: 60 rows embedded, 0 rejected; ", ends[0][0])
    assert re.search(r"out: \d+ rows embedded by this process; ", ends[1][0])
    assert content(out) == alone
