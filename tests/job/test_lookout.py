"""The lookout: a process is alive while its journal grows, and what it works on is left to it."""

import json
from pathlib import Path

import pytest

from stella_jax.job import lookout
from stella_jax.job.lookout import PATIENCE, STOPPED_PATIENCE, Lookout
from stella_jax.job.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lookout, "time", clock)
    return clock


def say(store: Store, journal: str, *parts: str) -> None:
    store.append(journal, json.dumps({"open": parts}).encode() + b"\n")


def test_a_journal_that_grows_is_alive_and_one_that_is_silent_too_long_is_not(store, clock):
    watch = Lookout(store)
    say(store, "progress.jsonl")
    assert watch.alive("progress.jsonl")
    clock.now += PATIENCE - 1
    assert watch.alive("progress.jsonl")
    say(store, "progress.jsonl")
    assert watch.alive("progress.jsonl")
    clock.now += PATIENCE - 1
    assert watch.alive("progress.jsonl")
    clock.now += 1
    assert not watch.alive("progress.jsonl")
    say(store, "progress.jsonl")
    assert watch.alive("progress.jsonl")


def test_a_process_that_has_not_begun_is_waited_for_as_long(store, clock):
    watch = Lookout(store)
    assert watch.alive("progress.jsonl")
    clock.now += PATIENCE
    assert not watch.alive("progress.jsonl")


def test_what_the_living_work_on_is_taken(store, clock):
    watch = Lookout(store)
    say(store, "progress.jsonl", "part-00000")
    say(store, "progress-1.jsonl", "part-00001", "part-00003")
    say(store, "progress-3.jsonl", "part-00009")  # of a job of more processes
    assert watch.taken(3, but=0) == {"part-00001", "part-00003"}
    assert watch.taken(3, but=2) == {"part-00000", "part-00001", "part-00003"}
    clock.now += PATIENCE - 1
    say(store, "progress.jsonl", "part-00002")
    clock.now += 1
    assert watch.taken(3, but=2) == {"part-00002"}


def test_who_leads_is_the_lowest_that_lives(store, clock):
    watch = Lookout(store)
    say(store, "progress.jsonl")
    say(store, "progress-2.jsonl")  # and process 1 never came
    say(store, "progress-3.jsonl")
    assert [watch.leads(process) for process in range(4)] == [True, False, False, False]
    clock.now += PATIENCE
    say(store, "progress-2.jsonl")
    assert [watch.leads(process) for process in range(4)] == [True, True, True, False]
    store.append("progress-2.jsonl", b'{"phase": "stopped"}\n')
    assert not watch.leads(3)  # it may be of an earlier run
    clock.now += STOPPED_PATIENCE
    assert watch.leads(3)


@pytest.mark.parametrize(
    "line", [b"", b"\n", b'{"open": ["part', b"{}\n", b"[]\n", b"3\n", b'{"open": null}\n', b"\xff"]
)
def test_a_line_that_cannot_be_read_takes_nothing(store, line):
    store.append("progress-1.jsonl", line)
    assert Lookout(store).taken(2, but=0) == set()
