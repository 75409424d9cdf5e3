"""Jobs of tests: small corpora, the command that embeds them, and what must come out the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import stella_jax
from stella_jax.job.job import FOLDERS
from stella_jax.job.progress import progress_name
from stella_jax.storage.store import open_store

# Of the embedded checkpoint: one shape is compiled, for texts cut at eight tokens.
SHORT = ("--dim", "32", "--max-length", "8")

# A call that nobody makes, for a command that is not to be struck.
NEVER = ("os:replace", -1)


def content(out: Path | str) -> dict[str, bytes]:
    """Files of a job by name, but for those that tell the time or what is under way."""
    store = open_store(out)
    folders = ("", *FOLDERS)
    names = [f"{folder}/{name}".lstrip("/") for folder in folders for name in store.sizes(folder)]
    passing = ("_job/progress", "_job/running/")
    return {name: store.read(name) for name in sorted(names) if not name.startswith(passing)}


def leftovers(out: Path) -> list[str]:
    """Temporary files that somebody left, by name."""
    return sorted(path.name for path in out.rglob("*.tmp"))


def journal(out: Path, process: int = 0) -> list[dict]:
    """The lines of a process's journal."""
    return [json.loads(line) for line in (out / progress_name(process)).read_text().splitlines()]


def wait_for_lines(out: Path, count: int, process: int = 0) -> None:
    """Returns when the process's journal has so many."""
    path = out / progress_name(process)
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        time.sleep(0.01)


def write_corpus(path: Path, texts: Iterable[str]) -> Path:
    """Rows r0, r1, ... of these texts."""
    path.write_text("".join(json.dumps({"id": f"r{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def embed_command(inputs: Iterable[Path | str], out: Path | str, *options: str) -> list[str]:
    """What starts a job in a process of its own."""
    return [sys.executable, "-m", "stella_jax", "embed", *map(str, inputs), "--out", str(out), *SHORT, *options]


def struck(
    command: list[str],
    place: str,
    call: int,
    kind: signal.Signals = signal.SIGKILL,
    patience: float = 120,
    silence: float = 0,
) -> list[str]:
    """The same command, struck by a signal on its way (see struck.py)."""
    script = str(Path(__file__).with_name("struck.py"))
    return [sys.executable, script, place, str(call), kind.name, str(patience), str(silence), *command[3:]]


def runs(pid: int) -> bool:
    """Whether there is such a process; a dead one has no command line, even if nobody has asked after it."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def running(commands: Iterable[Sequence[str]], **options: Any) -> Iterator[list[subprocess.Popen]]:
    """Processes of these commands, none of which outlives the block, whatever happens in it."""
    with ExitStack() as stack:
        processes = []
        for command in commands:
            processes.append(stack.enter_context(subprocess.Popen(command, **options)))
            stack.callback(processes[-1].kill)
        yield processes


def wait_until_stopped(processes: Sequence[subprocess.Popen], seconds: float = 300) -> None:
    """Returns when SIGSTOP has reached them all."""
    deadline = time.monotonic() + seconds
    while not all("\nState:\tT" in Path(f"/proc/{process.pid}/status").read_text() for process in processes):
        ended = [process.communicate() for process in processes if process.poll() is not None]
        assert not ended, ended
        assert time.monotonic() < deadline, "they never came to where they are stopped"
        time.sleep(0.02)


def go_on(processes: Iterable[subprocess.Popen]) -> None:
    """Lets those go on that were stopped."""
    for process in processes:
        process.send_signal(signal.SIGCONT)


def environment(cache: Path) -> dict[str, str]:
    """Of a process with the package under test, that shares its compiled programs with others in `cache`.

    JAX warns of proxies where processes meet, and some would be asked for this machine's own addresses.
    """
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return own | {
        "PYTHONPATH": str(Path(stella_jax.__file__).parents[1]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
