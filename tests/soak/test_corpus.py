"""10,000 real texts by one process and by two, and ten times as many in the same memory."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import (
    NEVER,
    content,
    embed_command,
    environment,
    kill_at_call,
    progress_lines,
    resume,
    running,
    wait_until_stopped,
)

pytestmark = pytest.mark.slow


class Ran:
    """A finished command: its summary, seconds, and peak memory in KiB."""

    def __init__(self, command: list[str], cache: Path):
        begin = time.monotonic()
        ended = subprocess.run(
            kill_at_call(command, *NEVER, log_interval=5),
            env=environment(cache),
            capture_output=True,
            text=True,
            check=False,
        )
        said = [line for line in ended.stderr.splitlines() if not line.startswith("embedding: ")]  # one a minute
        assert (ended.returncode, said) == (0, [])
        self.seconds = time.monotonic() - begin
        [found] = re.findall(r"peak memory: (\d+) KiB", ended.stdout)
        self.peak_memory = int(found)
        self.summary = ended.stdout.splitlines()[0]


@pytest.fixture(scope="module")
def warm(short_corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with all compiled programs, as compiling takes memory too."""
    Ran(embed_command([short_corpus], tmp_path_factory.mktemp("warm") / "out"), cache)
    return cache


@pytest.fixture(scope="module")
def alone(corpus: Path, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """The job of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return out, Ran(embed_command([corpus], out), warm)


def test_two_processes_write_the_same_bytes_as_one(alone, corpus, warm, tmp_path, tell):
    out = tmp_path / "out"
    many = ("--executor", "distributed", "--processes", "2", "--process")
    commands = [
        kill_at_call(embed_command([corpus], out, *many, str(i)), "stella_jax.runner:pad", 0, signal.SIGSTOP)
        for i in range(2)
    ]
    pipe = subprocess.PIPE
    with running(commands, env=environment(warm), stdout=pipe, stderr=pipe) as processes:
        wait_until_stopped(processes)
        resume(processes)
        assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 2
    assert content(out) == content(alone[0])
    shares = [progress_lines(out, i)[-1]["rows"] for i in range(2)]
    assert min(shares) > 2500
    verified = subprocess.run(
        [*embed_command([], out)[:3], "verify", str(out), "--sample", "200"],
        env=environment(warm),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "10000 rows are intact" in verified.stdout
    assert "; 200 computed again gave the same result" in verified.stdout
    tell(f"one process: {alone[1].summary.partition('; ')[2]}; two: {shares[0]} and {shares[1]} rows, the same bytes")


@pytest.mark.nightly
def test_memory_does_not_grow_with_rows(alone, long_corpus: Path, warm, tmp_path, tell: Callable[[str], None]):
    less = alone[1].peak_memory
    more = Ran(embed_command([long_corpus], tmp_path / "out"), warm)
    tell(
        f"peak memory: {less} KiB for 10,000 rows, {more.peak_memory} for 100,000 ({more.peak_memory / less - 1:+.1%})"
    )
    assert "100000 rows embedded, 0 rejected" in more.summary
    assert more.peak_memory < 1.05 * less
