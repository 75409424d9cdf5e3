"""Processes of a job are killed again and again, one, two or four of them: the same command ends in the same bytes."""

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from jobs import content, embed_command, environment, leftovers, struck

from stella_jax.job.verify import verify_job

pytestmark = pytest.mark.soak

PATIENCE = 2.0
NEVER = ("os:replace", -1)

# Where a process dies, and up to the how manieth call; few enough that each leaves work for the next.
PLACES = {
    "planning": ("stella_jax.job.scan:RowsDigest.add", 1500),
    "the plan's files": ("stella_jax.job.job:write_plan", 0),
    "reading": ("stella_jax.job.job:Job.read", 6),
    "tokenizing": ("stella_jax.tokenizer:Tokenizer.encode", 6),
    "device work": ("stella_jax.runner:pad", 20),
    "a part file": ("pyarrow.parquet:write_table", 6),
    "bytes to the disk": ("os:fsync", 40),
    "renaming": ("os:replace", 20),
    "rejected.jsonl": ("stella_jax.job.manifest:rejected_lines", 20),
    "the manifest": ("stella_jax.job.run:close_job", 0),
    "any moment": ("os:replace", -1),
}
# Of two or four processes only the first comes here.
LATE = ("planning", "the plan's files", "rejected.jsonl", "the manifest")


@pytest.fixture(scope="module")
def undisturbed(short_corpus: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run(command(short_corpus, out), env=environment(cache), check=True, capture_output=True)
    return content(out)


def command(corpus: Path, out: Path, index: int = 0, count: int = 1) -> list[str]:
    many = ("--executor", "distributed", "--processes", str(count), "--process", str(index)) if count > 1 else ()
    return embed_command([corpus], out, "--part-rows", "25", *many)


def start(arguments: list[str], cache: Path) -> subprocess.Popen:
    return subprocess.Popen(
        arguments, env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_at(process: subprocess.Popen, journal: Path, delay: float) -> threading.Thread:
    """Kills a process so many seconds after it has begun to write its journal."""
    before = journal.stat().st_size if journal.exists() else 0

    def run() -> None:
        while process.poll() is None and (not journal.exists() or journal.stat().st_size == before):
            time.sleep(0.02)
        time.sleep(delay)
        process.kill()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def run_round(corpus: Path, out: Path, cache: Path, random: Random, count: int) -> list[str]:
    """Starts all processes of a job, each to be killed somewhere; returns where those were that died."""
    processes, threads, where = [], [], []
    for index in range(count):
        where.append(random.choice([name for name in PLACES if not index or name not in LATE]))
        place, most = PLACES[where[index]]
        call = random.randint(0, most) if most >= 0 else -1
        arguments = struck(command(corpus, out, index, count), place, call, patience=PATIENCE, silence=PATIENCE / 10)
        processes.append(start(arguments, cache))
        if where[index] == "any moment":
            journal = out / (f"progress-{index}.jsonl" if index else "progress.jsonl")
            threads.append(kill_at(processes[index], journal, random.uniform(0, 1.5)))
    ends = [(*process.communicate(timeout=100), process.returncode) for process in processes]
    for thread in threads:
        thread.join()
    for _, errors, code in ends:
        assert code in (0, -9) or (code == 1 and "process 0 has not planned" in errors), (code, errors)
    return [name for name, (_, _, code) in zip(where, ends, strict=True) if code == -9]


@pytest.mark.parametrize(("count", "kills"), [(1, 9), (2, 7), (4, 6)])
def test_killed_anywhere_the_same_command_ends_in_the_same_bytes(
    undisturbed: dict[str, bytes],
    short_corpus: Path,
    cache: Path,
    tmp_path: Path,
    tell: Callable[[str], None],
    count: int,
    kills: int,
) -> None:
    random, died, jobs, left = Random(count), Counter[str](), 0, 0
    while died.total() < kills:
        assert jobs < 5, "the processes ended before they were killed"
        out, before = tmp_path / f"out-{jobs}", died.total()
        while died.total() < kills and not (out / "manifest.json").exists():
            died.update(run_round(short_corpus, out, cache, random, count))
            left += len(leftovers(out)) if out.exists() else 0
        jobs += 1
        if died.total() == before:
            continue
        ended = [start(command(short_corpus, out, index, count), cache) for index in range(count)]
        assert [(process.communicate(timeout=100)[1], process.returncode) for process in ended] == [("", 0)] * count
        assert content(out) == undisturbed
        assert leftovers(out) == []
        assert verify_job(out).faults == ()
    seen = ", ".join(f"{name} {number}" for name, number in sorted(died.items()))
    tell(f"{count} processes: {died.total()} killed in {jobs} jobs ({seen}); {left} temporary files left and removed")
