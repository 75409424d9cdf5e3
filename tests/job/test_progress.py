"""What a running job tells: lines for programs, a bar for people, and no trouble for the job."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from jobs import journal, wait_for_lines
from tqdm import tqdm

from stella_jax.batching import Batch
from stella_jax.job import progress as progress_module
from stella_jax.job.progress import Counts, Progress, Summary
from stella_jax.job.store import LocalStore, Store, open_store


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def read(self) -> float:
        self.now += 1e-6  # as time never stands still
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=clock.read, perf_counter=clock.read))
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def batch(texts: int, rows: int = 4, length: int = 10, tokens: int = 24) -> Batch:
    return Batch(length, rows, tuple((0, i) for i in range(texts)), tokens)


def test_a_line_has_what_the_job_has_come_to(store, tmp_path, clock):
    progress = Progress(store, process=2)
    progress.journal()
    clock.now += 1
    progress.begin(total=20, done=8)
    progress.opened("part-00003")
    progress.opened("part-00004")
    progress.rejected(2)
    clock.now += 5
    progress.embedded(batch(3))
    assert (
        journal(tmp_path, 2)[-1].items()
        >= {
            "process": 2,
            "phase": "embedding",
            "open": ["part-00003", "part-00004"],
            "parts": 0,
            "rows": 3,
            "rows_left": 7,
            "tokens": 24,
            "seconds": 5.0,
            "tokens_per_second": 4.8,
            "padding_share": 0.4,
            "eta_seconds": 11.7,  # 7 rows at 3 in 5 seconds
        }.items()
    )
    clock.now += 5
    progress.committed("part-00003")
    line = journal(tmp_path, 2)[-1]
    assert (line["parts"], line["open"]) == (1, ["part-00004"])


def test_before_the_first_row_nothing_is_foretold(store, tmp_path, clock):
    progress = Progress(store)
    progress.journal()
    clock.now += 1
    progress.tick()
    progress.begin(20, 0)
    assert [line["phase"] for line in journal(tmp_path)] == ["planning", "embedding"]
    assert [line["eta_seconds"] for line in journal(tmp_path)] == [None, None]
    assert journal(tmp_path)[-1]["padding_share"] is None


def test_lines_are_no_nearer_than_the_store_likes(store, tmp_path, clock):
    progress = Progress(store)
    progress.journal()
    for _ in range(100):
        clock.now += 0.1
        progress.tick()
    assert len(journal(tmp_path)) == 1 + 10 // LocalStore.journal_seconds


def test_nothing_is_written_before_the_folder_is_there(store, tmp_path, clock):
    progress = Progress(store)
    progress.tick()
    progress.begin(3, 0)
    assert not list(tmp_path.iterdir())


def test_what_is_taken_over_is_added(store, tmp_path, clock):
    progress = Progress(store)
    progress.journal()
    progress.begin(3, 0)
    clock.now += 10
    progress.embedded(batch(3))
    progress.waiting()
    progress.more(6)
    clock.now += 10
    progress.embedded(batch(2))
    line = journal(tmp_path)[-1]
    assert (line["phase"], line["rows"], line["rows_left"], line["eta_seconds"]) == ("embedding", 5, 4, 16.0)


def test_a_line_that_cannot_be_written_is_no_trouble(store, monkeypatch, clock):
    progress = Progress(store)

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalStore, "append", fail)
    progress.journal()
    progress.begin(1, 0)
    progress.embedded(batch(1))
    assert progress.end({"rows": 1, "rejected": 0}).rows == 1


@pytest.mark.parametrize("error", [None, ValueError])
def test_who_loads_is_seen_to_live(store, tmp_path, monkeypatch, error):
    monkeypatch.setattr(progress_module, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(LocalStore, "journal_seconds", 0.0)
    tqdm(disable=True).close()  # the first of a process starts a thread that stays
    threads = set(threading.enumerate())

    def run() -> None:
        with Progress(store) as progress:
            progress.journal()
            with progress.loading():
                wait_for_lines(tmp_path, 4)
                if error:
                    raise error
            progress.tick()

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    phases = [line["phase"] for line in journal(tmp_path)]
    assert phases[1:4] == ["loading"] * 3
    assert phases[-1] == ("stopped" if error else "planning")
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_last_line_says_how_it_ended(store, tmp_path, clock, error):
    def run() -> None:
        with Progress(store) as progress:
            progress.journal()
            progress.begin(3, 0)
            progress.opened("part-00000")
            if error:
                raise error
            progress.end({"rows": 3, "rejected": 0})

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    line = journal(tmp_path)[-1]
    assert (line["phase"], line["open"]) == ("stopped" if error else "done", [])


def test_counts_of_others_are_added(store, clock):
    progress = Progress(store)
    progress.begin(10, 0)
    clock.now += 2
    progress.done_elsewhere(Counts(parts=1, rows=4, tokens=30, computed=40, set_aside=1))
    progress.done_elsewhere(progress.counts)
    assert progress.counts == Counts(2, 8, 60, 80, 2)


def test_a_bar_where_it_is_wanted(store, capsys):
    for shown in (False, True):
        with Progress(store, shown=shown) as progress:
            progress.tick()
            progress.begin(4, 1)
            progress.embedded(batch(3))
        assert ("4/4" in capsys.readouterr().err) == shown


@pytest.mark.parametrize(
    ("summary", "sentence"),
    [
        (Summary(6, 60, 90, 2.0, 6, 1), "6 rows embedded, 1 rejected; 60 tokens in 2.0 s (3.0 texts/s, 30 tokens/s)"),
        (
            Summary(2, 60, 90, 2.0, 6, 0),
            "6 rows embedded, 0 rejected; 60 tokens in 2.0 s (1.0 texts/s, 30 tokens/s; 4 of",
        ),
        (Summary(0, 0, 0, 2.0, 6, 0), "6 rows embedded, 0 rejected; nothing was left to do"),
        (Summary(2, 60, 90, 2.0, None, None), "2 rows embedded by this process; 60 tokens in 2.0 s (1.0 texts/s, 30 t"),
    ],
)
def test_the_summary(summary, sentence):
    assert str(summary).startswith(sentence)
