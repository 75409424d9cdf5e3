"""Several processes share the splits of a job, even if some start late or die."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from jobs import content, write_corpus

from stella_jax import Stella
from stella_jax.job import assignment, heartbeat
from stella_jax.job.heartbeat import HEARTBEATS_FOLDER, OtherProcesses
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.processes import Processes
from stella_jax.job.progress import Summary
from stella_jax.job.run import heartbeat as with_heartbeat
from stella_jax.job.run import run_job
from stella_jax.job.verify import verify_job
from stella_jax.storage.store import LocalStore, open_store

OPTIONS = JobOptions(part_rows=3, split_bytes=200)


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """A file of many splits, files that share a split, and a file that cannot be cut."""
    large = write_corpus(tmp_path / "a.jsonl", [f"tea {i}" for i in range(60)])
    small = [tmp_path / f"s{i}.txt" for i in range(12)]
    for i, path in enumerate(small):
        path.write_text(f"fog {i}\nlaw {i}\n")
    whole = tmp_path / "z.csv"
    whole.write_text("text\n" + "".join(f"owl {i}\n" for i in range(40)))
    return [large, *small, whole]


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_TIMEOUT", 1.0)
    monkeypatch.setattr(LocalStore, "log_interval", 0.05)


def embed(model: Stella, corpus: list[Path], out: Path, processes: Processes):
    with with_heartbeat(open_store(out), processes):
        return run_job(
            model, {"model": "tiny", "revision": None}, corpus, out, OPTIONS, RunOptions(processes=processes)
        )


def together(runs: Sequence[Callable[[], Summary]]) -> list[Summary]:
    found: list[Any] = [None] * len(runs)

    def put(i: int) -> None:
        found[i] = runs[i]()

    threads = [threading.Thread(target=put, args=[i]) for i in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def alone(tiny: Stella, corpus: list[Path], tmp_path: Path) -> dict[str, bytes]:
    embed(tiny, corpus, tmp_path / "alone", Processes())
    return content(tmp_path / "alone")


@pytest.mark.parametrize("count", [2, 5])
def test_several_processes_write_the_same_as_one(tiny, corpus, alone, tmp_path, count: int) -> None:
    out = tmp_path / "out"
    runs = [lambda i=i: embed(tiny, corpus, out, Processes(i, count)) for i in range(count)]
    summaries = together(runs)
    assert content(out) == alone
    assert sum(summary.rows for summary in summaries) >= 124
    assert [summary.job_rows for summary in summaries if summary.job_rows] == [124]
    assert verify_job(out).faults == ()
    assert open_store(out).sizes(HEARTBEATS_FOLDER) == {}


def test_a_single_process_does_the_work_of_all(tiny, corpus, alone, tmp_path) -> None:
    assert embed(tiny, corpus, tmp_path / "out", Processes(3, 4)).job_rows == 124
    assert content(tmp_path / "out") == alone


@pytest.mark.parametrize("dead", [0, 2])
def test_the_claims_of_a_dead_process_are_taken_over(tiny, corpus, alone, tmp_path, dead: int) -> None:
    out = tmp_path / "out"
    store = open_store(out)
    store.prepare(HEARTBEATS_FOLDER)
    with store.replacing(f"{HEARTBEATS_FOLDER}/process-{dead}.json") as file:
        file.write(b"{}")
    assert OtherProcesses(store, dead).claim(4)
    assert embed(tiny, corpus, out, Processes(1, 3)).job_rows == 124
    assert content(out) == alone


def test_a_different_number_of_processes_in_each_run(tiny, corpus, alone, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"

    class Enough(BaseException):
        pass

    for count in (2, 1, 3):
        with monkeypatch.context() as patch:
            real, calls = LocalStore.write_json, iter(range(10**9))

            def some(self, name, fields, real=real, calls=calls):
                if "commits" in name and next(calls) == 6:
                    raise Enough
                real(self, name, fields)

            patch.setattr(LocalStore, "write_json", some)
            with pytest.raises(Enough):
                embed(tiny, corpus, out, Processes(count - 1, count))
    embed(tiny, corpus, out, Processes())
    assert content(out) == alone


def test_a_waiting_process_makes_two_requests_per_round(tiny, corpus, tmp_path, monkeypatch) -> None:
    """Whatever the number of processes and parts."""
    out = tmp_path / "out"
    store = open_store(out)
    store.prepare(HEARTBEATS_FOLDER)
    for process in range(50):
        with store.replacing(f"{HEARTBEATS_FOLDER}/process-{process}.json") as file:
            file.write(b"{}")
        OtherProcesses(store, process).claim(process)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_TIMEOUT", 1e9)
    requests: list[str] = []
    rounds = 0

    class Enough(Exception):
        pass

    def wait(progress) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            requests.clear()
        if rounds == 11:
            raise Enough

    for name in ("stamps", "size", "open", "replacing", "remove"):
        real = getattr(LocalStore, name)
        monkeypatch.setattr(LocalStore, name, lambda self, *a, real=real: requests.append(str(a)) or real(self, *a))
    monkeypatch.setattr(assignment, "wait", wait)
    with pytest.raises(Enough):
        run_job(tiny, {}, corpus, out, OPTIONS, RunOptions(processes=Processes(50, 51)))
    assert len(requests) == 20
