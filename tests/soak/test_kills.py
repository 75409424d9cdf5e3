"""One, two or four processes of a job are killed repeatedly; the repeated command writes the same bytes."""

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from random import Random

import pytest
from jobs import KILLS, NEVER, content, embed_command, environment, kill_at_call, leftovers, running
from marks import nightly

from stella_jax.job.progress import progress_name
from stella_jax.job.verify import verify_job

pytestmark = pytest.mark.slow

TIMEOUT = 2.0

ANY_MOMENT = "any moment"

# Functions at which a process is killed, and the highest number of the call, low enough to leave work for later kills.
# ANY_MOMENT: killed from outside, after at most so many parts.
ONCE = {
    "job.json": ("stella_jax.job.job:Job.key", 0),
    "the close": ("stella_jax.job.run:close_job", 0),
    "repeated ids": ("stella_jax.job.close:write_part", 0),
    "rejected.jsonl": ("stella_jax.job.close:rejected_lines", 0),
}
OFTEN = {
    ANY_MOMENT: ("", 6),
    "reading": ("stella_jax.readers.split_reader:RowsDigest.add", 1500),
    "claiming": ("stella_jax.job.heartbeat:OtherProcesses.claim", 3),
    "tokenizing": ("stella_jax.tokenizer.tokenizer:Tokenizer.encode", 6),
    "device work": ("stella_jax.runner:pad", 10),
    "a part file": ("pyarrow.parquet:write_table", 6),
    "bytes to the disk": ("os:fsync", 20),
    "renaming": ("os:replace", 10),
}
PLACES = ONCE | OFTEN
ALONE = [name for name in OFTEN if name != "claiming"]  # with one process, nothing is claimed


@pytest.fixture(scope="module")
def undisturbed(short_corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    finish(short_corpus, out, cache, 1)
    return content(out)


def command(corpus: Path, out: Path, index: int = 0, count: int = 1) -> list[str]:
    many = ("--executor", "distributed", "--processes", str(count), "--process", str(index)) if count > 1 else ()
    return embed_command([corpus], out, "--part-rows", "20", "--max-rejected", "50%", *many)


def started(commands: list[list[str]], cache: Path) -> AbstractContextManager[list[subprocess.Popen]]:
    return running(commands, env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_at(process: subprocess.Popen, log: Path, parts: int) -> threading.Thread:
    """Kills a process that has started to write its log, once `parts` more parts are finished."""
    commits = log.with_name("commits")

    def finished() -> int:
        return len(list(commits.glob("*.json")))

    size, enough = log.stat().st_size if log.exists() else 0, finished() + parts

    def run() -> None:
        while process.poll() is None and (not log.exists() or log.stat().st_size == size):
            time.sleep(0.005)
        while process.poll() is None and finished() < enough:
            time.sleep(0.005)
        process.kill()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def run_round(corpus: Path, out: Path, cache: Path, random: Random, where: Sequence[str]) -> list[str]:
    """Starts the processes of a job, each to be killed at one of PLACES; returns the places of the killed ones."""
    calls = [random.randint(0, PLACES[name][1]) for name in where]
    commands = []
    for index, (name, call) in enumerate(zip(where, calls, strict=True)):
        signal_place = NEVER if name == ANY_MOMENT else (PLACES[name][0], call)
        arguments = command(corpus, out, index, len(where))
        commands.append(kill_at_call(arguments, *signal_place, heartbeat_timeout=TIMEOUT, log_interval=TIMEOUT / 10))
    with ExitStack() as threads, started(commands, cache) as processes:
        for index, name in enumerate(where):
            if name == ANY_MOMENT:
                log = out / progress_name(index)
                threads.callback(kill_at(processes[index], log, calls[index]).join)
        ends = [(process.communicate(timeout=300)[1], process.returncode) for process in processes]
    for errors, code in ends:
        assert code in (0, -9), (code, errors)
    assert (out / "_job" / "manifest.json").exists() or 0 not in [code for _, code in ends]
    return [name for name, (_, code) in zip(where, ends, strict=True) if code == -9]


def finish(corpus: Path, out: Path, cache: Path, count: int) -> None:
    with started([command(corpus, out, index, count) for index in range(count)], cache) as processes:
        ends = [(process.communicate(timeout=300)[1], process.returncode) for process in processes]
    assert ends == [("", 0)] * count
    assert leftovers(out) == []
    assert verify_job(out).faults == ()


def test_one_process_killed_at_every_place(undisturbed, short_corpus, cache, tmp_path, tell):
    out, random, left = tmp_path / "out", Random(1), 0
    for name in ("job.json", *ALONE, "repeated ids", "rejected.jsonl", "the close"):
        assert run_round(short_corpus, out, cache, random, [name]) == [name]
        left += len(leftovers(out)) if out.exists() else 0
    finish(short_corpus, out, cache, 1)
    assert content(out) == undisturbed
    tell(f"one process: killed {len(PLACES)} times ({', '.join(PLACES)}); {left} temporary files left and removed")


@pytest.mark.parametrize("count", [2, *nightly(4)])
def test_several_processes_killed(undisturbed, short_corpus, cache, tmp_path, tell, count):
    random, died, jobs = Random(count), Counter[str](), 0
    while died.total() < KILLS:
        assert jobs < 5, "the processes ended before they were killed"
        out = tmp_path / f"out-{jobs}"
        jobs += 1
        while died.total() < KILLS and not (out / "_job" / "manifest.json").exists():
            first = random.choice(sorted(PLACES))
            others = random.choices(sorted(OFTEN), k=count - 1)
            died.update(run_round(short_corpus, out, cache, random, [first, *others]))
        finish(short_corpus, out, cache, count)
        assert content(out) == undisturbed
    seen = ", ".join(f"{name} {number}" for name, number in sorted(died.items()))
    tell(f"{count} processes: {died.total()} killed in {jobs} jobs ({seen})")
