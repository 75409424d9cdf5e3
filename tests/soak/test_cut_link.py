"""Two machines share a folder; they connect over a network once, and then do not need it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jobs import (
    content,
    embed_command,
    environment,
    kill_at_call,
    leftovers,
    progress_lines,
    resume,
    running,
    wait_until_stopped,
)
from marks import nightly

pytestmark = pytest.mark.slow

TIMEOUT = 10.0
PART_ROWS = ("--part-rows", "100")

# A batch in the middle of each process's work.
AT_WORK = ("stella_jax.runner:pad", 20)
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces with a cable between them."""
    names = (f"stella-soak-{os.getpid()}-0", f"stella-soak-{os.getpid()}-1")
    try:
        ip("netns", "add", names[0])
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces need iproute2 and the right to make them: {getattr(error, 'stderr', error)}")
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            there = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
            for process in there.stdout.split():
                os.kill(int(process), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def cable_is_up(machine: str) -> bool:
    [link] = json.loads(ip("-n", machine, "-json", "link", "show", "cable"))
    return link["operstate"] == "UP"


def wait_until_cut(machine: str) -> None:
    """Waits until the other end notices; the kernel reports it with a delay."""
    deadline = time.monotonic() + 10
    while cable_is_up(machine):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def both_at_work(machines: tuple[str, str], corpus: Path, out: Path, cache: Path) -> Iterator[list[subprocess.Popen]]:
    """Both processes, connected and stopped in the middle of their work."""
    together = ("--executor", "distributed", "--processes", "2", "--coordinator", f"{ADDRESSES[0]}:7654", "--process")
    commands = []
    for i, machine in enumerate(machines):
        command = embed_command([corpus], out, *PART_ROWS, *together, str(i))
        command = kill_at_call(command, *AT_WORK, signal.SIGSTOP, heartbeat_timeout=TIMEOUT, log_interval=TIMEOUT / 10)
        commands.append(["ip", "netns", "exec", machine, *command])
    with running(commands, env=environment(cache), stderr=subprocess.PIPE, text=True) as processes:
        wait_until_stopped(processes)
        yield processes


def rows_done(out: Path) -> list[int]:
    return [progress_lines(out, i)[-1]["rows"] for i in range(2)]


@pytest.fixture(scope="module")
def alone(medium_corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone") / "out"
    subprocess.run(
        embed_command([medium_corpus], out, *PART_ROWS), env=environment(cache), check=True, capture_output=True
    )
    return content(out)


@pytest.mark.nightly
def test_cut_link(machines, medium_corpus, cache, alone, tmp_path, tell):
    out = tmp_path / "out"
    with both_at_work(machines, medium_corpus, out, cache) as processes:
        before = rows_done(out)
        assert cable_is_up(machines[0])
        ip("-n", machines[1], "link", "set", "cable", "down")
        wait_until_cut(machines[0])
        resume(processes)
        assert [(process.communicate(timeout=300)[1], process.returncode) for process in processes] == [("", 0)] * 2
    after = rows_done(out)
    assert all(new > old + 500 for new, old in zip(after, before, strict=True))
    assert content(out) == alone
    tell(f"link cut at {before} rows of 6,000; in the end they had done {after}")


@pytest.mark.parametrize("dead", [0, *nightly(1)])
def test_cut_link_and_a_killed_process(machines, medium_corpus, cache, alone, tmp_path, tell, dead):
    out = tmp_path / "out"
    with both_at_work(machines, medium_corpus, out, cache) as processes:
        before = rows_done(out)
        ip("-n", machines[1], "link", "set", "cable", "down")
        processes[dead].kill()
        living = processes[1 - dead]
        resume([living])
        assert (living.communicate(timeout=300)[1], living.returncode) == ("", 0)
        assert processes[dead].communicate()[1] == ""
    done = rows_done(out)[1 - dead]
    assert done > 3000
    assert content(out) == alone
    assert leftovers(out) == []
    tell(f"link cut and process {dead} killed at {before} rows; the other did {done}")
