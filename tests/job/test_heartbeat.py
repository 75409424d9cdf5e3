"""Which processes are alive and what they work on, as seen by another process."""

import time
from pathlib import Path

import pytest

from stella_jax.job import heartbeat
from stella_jax.job.heartbeat import HEARTBEATS_FOLDER, Heartbeat, OtherProcesses
from stella_jax.storage.store import LocalStore, Store, open_store


@pytest.fixture(params=["folder", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    store = open_store(tmp_path if request.param == "folder" else f"memory://{tmp_path.name}")
    store.prepare(HEARTBEATS_FOLDER)
    return store


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_TIMEOUT", 0.2)


def beat(store: Store, process: int, content: bytes = b"1") -> None:
    with store.replacing(f"{HEARTBEATS_FOLDER}/process-{process}.json") as file:
        file.write(content)


def test_a_process_is_alive_while_its_heartbeat_changes(store: Store) -> None:
    others = OtherProcesses(store, 1)
    others.refresh()
    assert not others.is_alive(0) and others.is_leader()
    beat(store, 0)
    others.refresh()
    assert others.is_alive(0) and not others.is_leader()
    time.sleep(0.25)
    others.refresh()
    assert not others.is_alive(0) and others.is_leader()
    beat(store, 0, b"12")
    others.refresh()
    assert others.is_alive(0)


def test_the_heartbeat_ends_with_its_block(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(store), "log_interval", 0.01)
    others = OtherProcesses(store, 1)
    with Heartbeat(store, 0):
        for _ in range(10):
            time.sleep(0.05)
            others.refresh()
            assert others.is_alive(0)
        assert OtherProcesses(store, 0).claim(3)
        others.refresh()
        assert others.is_claimed(3) and not others.is_claimed(2)
        OtherProcesses(store, 0).release(3)
        others.refresh()
        assert not others.is_claimed(3)
    others.refresh()
    assert not others.is_alive(0) and not others.is_claimed(3)
    assert store.sizes(HEARTBEATS_FOLDER) == {}


def test_claims_of_dead_processes_do_not_count(store: Store) -> None:
    beat(store, 0)
    assert OtherProcesses(store, 0).claim(5)
    others = OtherProcesses(store, 1)
    others.refresh()
    assert others.is_claimed(5) and not others.claim(5)
    time.sleep(0.25)
    others.refresh()
    assert not others.is_claimed(5) and others.claim(5)


def test_of_two_claims_the_lower_number_wins(store: Store) -> None:
    beat(store, 0)
    beat(store, 1)
    assert OtherProcesses(store, 1).claim(5)
    assert OtherProcesses(store, 0).claim(5)
    assert not OtherProcesses(store, 1).claim(5)


def test_processes_that_gave_way_do_not_wait_for_each_other(store: Store) -> None:
    for process in range(3):
        beat(store, process)
    assert OtherProcesses(store, 0).claim(5)
    assert not OtherProcesses(store, 1).claim(5) and not OtherProcesses(store, 2).claim(5)
    OtherProcesses(store, 0).release(5)  # as after a restart
    for process in range(3):
        others = OtherProcesses(store, process)
        others.refresh()
        assert not others.is_claimed(5)


def test_other_files_are_ignored(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.prepare(HEARTBEATS_FOLDER)
    for name in ("process-.json", "process-x.json", "split-1-by-", "notes", "process-0.json"):
        (tmp_path / HEARTBEATS_FOLDER / name).write_bytes(b"\xff{")
    others = OtherProcesses(store, 1)
    others.refresh()
    assert others.is_alive(0) and not others.is_claimed(1)
