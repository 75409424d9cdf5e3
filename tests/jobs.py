"""Jobs of tests: small corpora, the command that embeds them, and what must come out the same."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import stella_jax
from stella_jax.job.store import open_store

# Of the embedded checkpoint: one shape is compiled, for texts cut at eight tokens.
SHORT = ("--dim", "32", "--max-length", "8")
FOLDERS = ("", "plan", "receipts")

# A call that nobody makes, for a command that is not to be struck.
NEVER = ("os:replace", -1)


def content(out: Path | str) -> dict[str, bytes]:
    """Files of a job by name, but for the journals, which tell the time."""
    store = open_store(out)
    names = (f"{folder}/{name}".lstrip("/") for folder in FOLDERS for name in store.sizes(folder))
    return {name: store.read(name) for name in sorted(names) if name not in FOLDERS and not name.startswith("progress")}


def leftovers(out: Path) -> list[str]:
    """Temporary files that somebody left, by name."""
    return sorted(path.name for path in out.rglob("*.tmp"))


def journal(out: Path, process: int = 0) -> list[dict]:
    """The lines of a process's journal."""
    name = f"progress-{process}.jsonl" if process else "progress.jsonl"
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def wait_for_lines(out: Path, count: int, process: int = 0) -> None:
    """Returns when the process's journal has so many."""
    path = out / (f"progress-{process}.jsonl" if process else "progress.jsonl")
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


def environment(cache: Path) -> dict[str, str]:
    """Of a process with the package under test, that shares its compiled programs with others in `cache`."""
    return os.environ | {
        "PYTHONPATH": str(Path(stella_jax.__file__).parents[1]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
