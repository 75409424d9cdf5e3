"""Jobs for tests: small corpora, commands that embed them, and the files that must come out the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import stella_jax
from stella_jax.job.job import JOB_FOLDERS
from stella_jax.job.part_file import write_part
from stella_jax.job.progress import progress_name
from stella_jax.storage.store import open_store

# Options for the included checkpoint: texts are truncated at eight tokens, so that one shape is compiled.
SHORT = ("--dim", "32", "--max-length", "8")

# Processes that a slow test kills, at least; `make nightly KILLS=12` kills more.
KILLS = int(os.environ.get("KILLS", "3"))

# Arguments of kill_at_call for a command that no signal interrupts.
NEVER = ("os:replace", -1)


def content(out: Path | str) -> dict[str, bytes]:
    """Files of a job by name, without those about times and running processes."""
    store = open_store(out)
    folders = ("", *JOB_FOLDERS)
    names = [f"{folder}/{name}".lstrip("/") for folder in folders for name in store.sizes(folder)]
    passing = ("_job/progress", "_job/running/")
    return {name: store.read(name) for name in sorted(names) if not name.startswith(passing)}


def leftovers(out: Path) -> list[str]:
    """Names of temporary files left behind."""
    return sorted(path.name for path in out.rglob("*.tmp"))


def progress_lines(out: Path, process: int = 0) -> list[dict]:
    """The lines of a process's progress log."""
    return [json.loads(line) for line in (out / progress_name(process)).read_text().splitlines()]


def write_corpus(path: Path, texts: Iterable[str]) -> Path:
    """Rows r0, r1, ... of these texts."""
    path.write_text("".join(json.dumps({"id": f"r{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def replace_part(out: Path, part: int, change: Callable[[dict[str, list]], object]) -> None:
    """Changes the columns of a part of the first split, with a commit and a manifest that match, as a bug would."""
    store, name = open_store(out), f"part-000000-{part:04}"
    table = pq.read_table(out / f"{name}.parquet")
    columns = table.to_pydict()
    change(columns)
    size, sha256 = write_part(store, f"{name}.parquet", table.from_pydict(columns, table.schema))
    changes = {"size": size, "sha256": sha256}
    manifest = store.read_json("_job/manifest.json")
    manifest["parts"][part] |= changes
    store.write_json("_job/manifest.json", manifest)
    commit = f"_job/commits/{name}.json"
    store.write_json(commit, store.read_json(commit) | changes)


def embed_command(inputs: Iterable[Path | str], out: Path | str, *options: str) -> list[str]:
    """A command that runs a job in its own process."""
    return [sys.executable, "-m", "stella_jax", "embed", *map(str, inputs), "--out", str(out), *SHORT, *options]


def kill_at_call(
    command: list[str],
    place: str,
    call: int,
    kind: signal.Signals = signal.SIGKILL,
    heartbeat_timeout: float = 120,
    log_interval: float = 0,
) -> list[str]:
    """The same command, with a signal at a call of a function (see kill_at_call.py)."""
    script = str(Path(__file__).with_name("kill_at_call.py"))
    return [
        sys.executable,
        script,
        place,
        str(call),
        kind.name,
        str(heartbeat_timeout),
        str(log_interval),
        *command[3:],
    ]


def runs(pid: int) -> bool:
    """Whether the process runs; a zombie has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def running(commands: Iterable[Sequence[str]], **options: Any) -> Iterator[list[subprocess.Popen]]:
    """Starts the commands; kills them at the end of the block, whatever happens in it."""
    with ExitStack() as stack:
        processes = []
        for command in commands:
            processes.append(stack.enter_context(subprocess.Popen(command, **options)))
            stack.callback(processes[-1].kill)
        yield processes


def wait_until_stopped(processes: Sequence[subprocess.Popen], seconds: float = 300) -> None:
    """Waits until SIGSTOP has stopped all processes."""
    deadline = time.monotonic() + seconds
    while not all("\nState:\tT" in Path(f"/proc/{process.pid}/status").read_text() for process in processes):
        ended = [process.communicate() for process in processes if process.poll() is not None]
        assert not ended, ended
        assert time.monotonic() < deadline, "the processes did not stop"
        time.sleep(0.02)


def resume(processes: Iterable[subprocess.Popen]) -> None:
    """Continues stopped processes."""
    for process in processes:
        process.send_signal(signal.SIGCONT)


def environment(cache: Path) -> dict[str, str]:
    """Environment variables for a process with the package under test and a cache of compiled programs.

    Without proxies: JAX warns about them when processes connect, and some would be used for local addresses.
    """
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return own | {
        "PYTHONPATH": str(Path(stella_jax.__file__).parents[1]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def free_port() -> int:
    """An unused local port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
