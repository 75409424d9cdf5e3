"""Progress: the lines of the file, the bar and lines on stderr, and the summary."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from jobs import progress_lines

from stella_jax.batching import Batch
from stella_jax.job import progress as progress_module
from stella_jax.job.progress import Counts, Progress, Show, Summary, Task
from stella_jax.readers.splits import ByteRange, Split
from stella_jax.storage.store import LocalStore, Store, open_store


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def read(self) -> float:
        self.now += 1e-6
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=clock.read, perf_counter=clock.read))
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "_job").mkdir()
    return open_store(tmp_path)


def batch(texts: int, rows: int = 4, length: int = 10, tokens: int = 24) -> Batch:
    return Batch(length, rows, tuple((0, i) for i in range(texts)), tokens)


def split(size: int, number: int = 0) -> Split:
    return Split(number, (ByteRange(0, 0, size),))


def test_the_counts_of_a_line(store: Store, tmp_path: Path, clock: Clock) -> None:
    progress = Progress(store, process=2)
    progress.start(total=2000, done=800)
    clock.now += 5
    progress.on_batch(batch(3))
    progress.on_commit(split(900), 300, rejected=2)
    clock.now += 5
    progress.on_commit(split(900), 600, rejected=0)
    line = progress_lines(tmp_path, 2)[-1]
    assert (line["process"], line["phase"], line["bytes"], line["bytes_left"]) == (2, "embedding", 1400, 600)
    assert (line["parts"], line["rows"], line["rejected"], line["tokens"]) == (2, 3, 2, 24)
    assert (line["seconds"], line["tokens_per_second"], line["padding_share"]) == (10.0, 2.4, 0.4)
    assert line["eta_seconds"] == 10.0  # 600 bytes at 600 in 10 seconds


def test_there_is_no_eta_before_the_first_commit(store: Store, tmp_path: Path, clock: Clock) -> None:
    progress = Progress(store)
    progress.start(20, 10)
    assert [(line["phase"], line["eta_seconds"]) for line in progress_lines(tmp_path)] == [("embedding", None)]
    assert progress_lines(tmp_path)[-1]["padding_share"] is None


def test_the_interval_between_lines(store: Store, tmp_path: Path, clock: Clock) -> None:
    progress = Progress(store)
    progress.start(20, 0)
    for _ in range(100):
        clock.now += 0.1
        progress.on_batch(batch(1))
    assert len(progress_lines(tmp_path)) == 1 + 10 // LocalStore.log_interval


def test_splits_taken_over_are_added(store: Store, tmp_path: Path, clock: Clock) -> None:
    progress = Progress(store)
    progress.start(30, 0)
    clock.now += 10
    progress.on_commit(split(30), 30, 0)
    progress.waiting()
    progress.add_work(60)
    clock.now += 10
    progress.on_commit(split(60, 1), 20, 0)
    line = progress_lines(tmp_path)[-1]
    assert (line["phase"], line["bytes"], line["bytes_left"], line["eta_seconds"]) == ("embedding", 50, 40, 16.0)


def test_a_line_that_cannot_be_written_is_ignored(store: Store, monkeypatch: pytest.MonkeyPatch, clock) -> None:
    progress = Progress(store)

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalStore, "append", fail)
    progress.start(1, 0)
    progress.on_batch(batch(1))
    assert progress.end({"rows": 1, "rejected": 0}).rows == 1


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_phase_of_the_last_line(store: Store, tmp_path: Path, clock: Clock, error) -> None:
    def run() -> None:
        with Progress(store) as progress:
            progress.start(3, 0)
            if error:
                raise error
            progress.end({"rows": 3, "rejected": 0})

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    assert progress_lines(tmp_path)[-1]["phase"] == ("stopped" if error else "done")


def test_counts_of_other_processes_are_added(store: Store, clock: Clock) -> None:
    progress = Progress(store)
    progress.start(100, 10)
    clock.now += 2
    progress.add(Counts(bytes=5, parts=1, rows=4, tokens=30, computed_tokens=40, rejected=1))
    progress.add(progress.counts)
    assert progress.counts == Counts(10, 2, 8, 60, 80, 2)


@pytest.mark.parametrize(
    ("show", "task", "expected"),
    [
        ("nothing", "embedding", ""),
        ("bar", "embedding", "100%"),
        ("lines", "embedding", "embedding: 4.00B of 4.00B"),
        ("lines", "scoring", "scoring: 4.00B of 4.00B"),
    ],
)
def test_stderr(store: Store, tmp_path: Path, capsys, clock: Clock, show: Show, task: Task, expected: str) -> None:
    with Progress(store, show=show, task=task) as progress:
        progress.start(4, 1)
        progress.on_batch(batch(3))
        clock.now += 61
        progress.on_commit(split(3), 3, 0)
    shown = capsys.readouterr().err
    assert expected in shown and bool(shown) == bool(expected)
    assert {line["phase"] for line in progress_lines(tmp_path)} == {task}


@pytest.mark.parametrize(
    ("summary", "sentence"),
    [
        (Summary(6, 60, 90, 2.0, 6, 1), "6 rows embedded, 1 rejected; 60 tokens in 2.0 s (3.0 texts/s, 30 tokens/s)"),
        (
            Summary(2, 60, 90, 2.0, 6, 0),
            "6 rows embedded, 0 rejected; 60 tokens in 2.0 s (1.0 texts/s, 30 tokens/s; 4 of",
        ),
        (Summary(0, 0, 0, 2.0, 6, 0), "6 rows embedded, 0 rejected; nothing was left to do"),
        (Summary(0, 0, 0, 2.0, 6, 0, "scoring"), "6 rows scored, 0 rejected; nothing"),
        (Summary(2, 60, 90, 2.0, None, None), "2 rows embedded by this process; 60 tokens in 2.0 s (1.0 texts/s, 30 t"),
    ],
)
def test_the_summary(summary: Summary, sentence: str) -> None:
    assert str(summary).startswith(sentence)
