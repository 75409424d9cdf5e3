"""Whole jobs on a small Ray cluster: the same bytes as in one process, even if actors die."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import GOLDENS

from stella_jax import Reranker, Stella
from stella_jax.graceful_shutdown import GracefulShutdown, Stopped
from stella_jax.job.options import JobCommand, JobOptions, ModelOptions, RunOptions
from stella_jax.job.progress import Counts, Progress
from stella_jax.job.ray_job import run_ray_job
from stella_jax.job.run import run_job
from stella_jax.readers.rows import RowFields

# Ray forks, which JAX minds where it runs, as beside other tests; in a driver it does not. And it leaves files of its
# logs open, some versions more, some less.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MODEL = ModelOptions(dim=(32, 64), max_length=8)
OPTIONS = JobOptions(normalize=True, precision="int8", part_rows=3, split_bytes=400)


@pytest.fixture(autouse=True)
def one_cpu_per_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stella_jax.job.ray_cluster.ACTOR_CPUS", 1)


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], JobCommand]:
    rows = [{"id": f"r{i}", "text": "tea " * (i % 6)} for i in range(300)] + [{"id": "r3", "text": "again"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lambda out: JobCommand((str(tmp_path / "a.jsonl"),), str(tmp_path / out), MODEL, OPTIONS)


def options(stop: GracefulShutdown | None = None) -> RunOptions:
    return RunOptions(max_rejected=0.1, stop=stop or GracefulShutdown(20))


def content(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("progress"))
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def undisturbed(command: JobCommand) -> dict[str, bytes]:
    model = Stella.from_pretrained("tiny", dim=(32, 64))
    model.max_seq_length = 8
    run_job(model, MODEL.origin(), command.inputs, command.out, OPTIONS, options())
    return content(Path(command.out))


def kill_working_actor() -> int | None:
    """Kills an actor during its call, when Ray renames the process; returns its process id, None if there is none."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes().startswith(b"ray::Actor.work"):
                os.kill(int(path.name), signal.SIGKILL)
                return int(path.name)
        except OSError:  # it has ended
            pass
    return None


def test_an_actor_killed_in_the_middle_of_a_part(command, tmp_path: Path) -> None:
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.01) and not killed:
            if list((tmp_path / "ray" / "_job" / "commits").glob("*.json")) and (pid := kill_working_actor()):
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        summary = run_ray_job(command("ray"), options())
    finally:
        over.set()
        thread.join()
    assert len(killed) == 1
    assert (summary.job_rows, summary.job_rejected) == (300, 1)  # a log of the loss may come too late
    assert content(tmp_path / "ray") == undisturbed(command("alone"))
    lines = [json.loads(line) for line in (tmp_path / "ray" / "_job" / "progress.jsonl").read_text().splitlines()]
    assert lines[-1]["phase"] == "done"


@pytest.mark.nightly
def test_actors_score_pairs(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"query": "tea", "text": "green tea " * (i % 5)}) + "\n" for i in range(20)))
    path, fields = str(GOLDENS / "gte-reranker"), RowFields(query="query")
    model = ModelOptions(path, max_length=16, scores=True)
    command = JobCommand((str(pairs),), str(tmp_path / "ray"), model, JobOptions(fields=fields, part_rows=3))
    assert run_ray_job(command, options()).rows == 20
    run_job(Reranker.from_pretrained(path, max_length=16), model.origin(), [pairs], tmp_path / "alone", command.job)
    assert content(tmp_path / "ray") == content(tmp_path / "alone")


@pytest.mark.nightly
def test_missing_parts_are_redone_and_inputs_added(command, tmp_path: Path) -> None:
    undisturbed(command("ray"))
    before = content(tmp_path / "ray")
    part = "part-000002-0001"
    (tmp_path / "ray" / "_job" / "commits" / f"{part}.json").unlink()
    assert run_ray_job(command("ray"), options()).rows == 3
    assert content(tmp_path / "ray") == before
    assert str(run_ray_job(command("ray"), options())).endswith("nothing was left to do")
    (tmp_path / "b.jsonl").write_text('{"text": "tea"}\n')
    more = JobCommand((*command("ray").inputs, str(tmp_path / "b.jsonl")), str(tmp_path / "ray"), MODEL, OPTIONS)
    assert run_ray_job(more, options()).rows == 1


def test_an_error_in_an_actor(command, tmp_path: Path, refused) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "tea"}\n' * 2 + '{"text": 1}\n' * 20)
    with refused("--max-rejected", "(text is 1, not", mask=r"\d+ of \d+|[\d.]+%|(?<=a\.jsonl:)\d+"):
        run_ray_job(command("ray"), options())


@pytest.mark.nightly
def test_the_directory_of_another_job(command, tmp_path: Path, refused) -> None:
    undisturbed(command("ray"))
    before = content(tmp_path / "ray")
    other = JobCommand(command("ray").inputs, str(tmp_path / "ray"), ModelOptions(dim=32, max_length=8), OPTIONS)
    with refused("dims was", varies=True):
        run_ray_job(other, options())
    assert content(tmp_path / "ray") == before


def test_a_stopped_job_can_be_finished_without_ray(command, tmp_path: Path, monkeypatch) -> None:
    stop, count = GracefulShutdown(30), Progress.add

    def count_and_stop(progress: Progress, done: Counts) -> None:
        count(progress, done)
        if done.parts and not stop.requested:
            stop.request()

    monkeypatch.setattr(Progress, "add", count_and_stop)
    with pytest.raises(Stopped):
        run_ray_job(command("ray"), options(stop))
    assert not list((tmp_path / "ray").rglob("*.tmp"))
    assert not (tmp_path / "ray" / "_job" / "manifest.json").exists()
    assert undisturbed(command("ray")) == undisturbed(command("alone"))
