"""Whole jobs by the actors of a small Ray cluster: the bytes of a job in one process, whoever dies."""

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from stella_jax.job.request import Request

from stella_jax import Stella, StellaError
from stella_jax.job.progress import Counts, Progress
from stella_jax.job.ray_job import run_ray_job
from stella_jax.job.rows import Fields
from stella_jax.job.run import Running, run_job
from stella_jax.job.stop import Stop, Stopped

# Ray takes its time to start, and to see that somebody died. It forks, which JAX minds where it runs, as beside other
# tests; in a driver it does not. And it leaves files of its logs open, some versions more, some less.
pytestmark = [
    pytest.mark.soak,
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two slots of one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stella_jax.job.ray_cluster.SLOT_CPUS", 1)
        patch.setenv("RAY_worker_niceness", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()


@pytest.fixture
def request_of(tmp_path: Path):
    rows = [{"id": f"r{i}", "text": "tea " * (i % 6)} for i in range(300)] + [{"id": "r3", "text": "again"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(out: str) -> Request:
        paths = {"inputs": (str(tmp_path / "a.jsonl"),), "out": str(tmp_path / out)}
        options = {"dim": (32, 64), "max_length": 8, "part_rows": 3, "max_rejected": 0.1, "normalize": True}
        unset = dict.fromkeys(("revision", "dtype", "mesh", "prompt"))
        return Request(model="tiny", fields=Fields(), **paths, **options, **unset)  # pyright: ignore[reportArgumentType]

    return make


def content(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("progress"))
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def undisturbed(request: Request) -> dict[str, bytes]:
    model = Stella.from_pretrained("tiny", dim=(32, 64))
    model.max_seq_length = 8
    settings = request.settings(model)
    run_job(model, request.origin, request.inputs, request.out, settings, Running(request.max_rejected))
    return content(Path(request.out))


def is_actor(pid: int) -> bool:
    """Whether this is an actor that is loading the model or embedding, as Ray names it then."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_Actor.run")
    except OSError:  # it has ended
        return False


def kill_one_at_work() -> int | None:
    """Kills an actor amid a call and returns its number, where there is one."""
    for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
        if is_actor(pid):
            os.kill(pid, signal.SIGSTOP)  # so that what it does now is what it dies over
            if is_actor(pid):
                os.kill(pid, signal.SIGKILL)
                return pid
            os.kill(pid, signal.SIGCONT)
    return None


def test_the_bytes_of_one_process_with_an_actor_killed_amid_a_part(request_of, tmp_path, capfd) -> None:
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        """Once a part is there, ends an actor that is at work on another."""
        while not over.wait(0.01) and not killed:
            if list((tmp_path / "ray" / "receipts").glob("*.json")) and (pid := kill_one_at_work()):
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        summary = run_ray_job(request_of("ray"), Stop(5), shown=False)
    finally:
        over.set()
        thread.join()
    assert len(killed) == 1
    assert "a Ray worker on" in capfd.readouterr().err
    assert (summary.job_rows, summary.job_rejected) == (300, 1)
    assert content(tmp_path / "ray") == undisturbed(request_of("alone"))
    journal = [json.loads(line) for line in (tmp_path / "ray" / "progress.jsonl").read_text().splitlines()]
    assert (journal[-1]["phase"], journal[-1]["rows_left"]) == ("done", 0)
    (tmp_path / "elsewhere").mkdir()
    moved = str((tmp_path / "a.jsonl").rename(tmp_path / "elsewhere" / "a.jsonl"))
    (tmp_path / "ray" / "receipts" / "part-00002.json").unlink()
    assert run_ray_job(replace(request_of("ray"), inputs=(moved,)), Stop(5), shown=False).rows == 3
    assert content(tmp_path / "ray") == content(tmp_path / "alone")


def test_an_error_in_an_actor_is_told_as_here(request_of, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(StellaError, match=r"no row of the inputs .* a\.jsonl:1, the first: text is 1, not"):
        run_ray_job(request_of("ray"), Stop(5), shown=False)
    assert not (tmp_path / "ray").exists()


def test_stopped_amid_the_job_it_can_be_finished_here(request_of, tmp_path, monkeypatch) -> None:
    stop, count = Stop(30), Progress.done_elsewhere

    def count_and_ask(progress: Progress, done: Counts) -> None:
        count(progress, done)
        if not stop.asked:
            stop.ask()

    monkeypatch.setattr(Progress, "done_elsewhere", count_and_ask)
    with pytest.raises(Stopped):
        run_ray_job(request_of("ray"), stop, shown=False)
    assert not list((tmp_path / "ray").rglob("*.tmp"))
    assert not (tmp_path / "ray" / "manifest.json").exists()
    assert undisturbed(request_of("ray")) == undisturbed(request_of("alone"))
