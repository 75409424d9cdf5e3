"""Which processes of a job are alive, and which splits they are working on.

Every process overwrites a file of its own at intervals; if another process sees it unchanged for long enough, it takes
the process for dead. Clocks are never compared. Before a process reads a split it writes a claim. Everything is in one
folder, so that one listing shows it all. A wrong conclusion only means that work is done twice.
"""

import json
import threading
import time
from contextlib import suppress
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.storage.store import Store

HEARTBEATS_FOLDER = "_job/running"

# Seconds without a heartbeat after which a process counts as dead.
HEARTBEAT_TIMEOUT = 120.0


class Heartbeat:
    """The heartbeat of process number `process`, in a thread, while the block runs."""

    def __init__(self, store: Store, process: int):
        self._store, self._name = store, f"{HEARTBEATS_FOLDER}/process-{process}.json"
        self._process = process
        self._beats = 0
        self._ended = threading.Event()

    def __enter__(self) -> "Heartbeat":
        self._remove()
        self._beat()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()
        self._remove()

    def _run(self) -> None:
        while not self._ended.wait(self._store.log_interval):
            self._beat()

    def _beat(self) -> None:
        """Overwrites the file; its size changes with each beat, since not every store reports modification times."""
        self._beats += 1
        line = json.dumps({"process": self._process, "beats": self._beats})
        with suppress(OSError, StellaError), self._store.replacing(self._name) as file:
            file.write(f"{line}{' ' * (self._beats % 64)}\n".encode())

    def _remove(self) -> None:
        """Removes the heartbeat and all claims of this process."""
        with suppress(OSError, StellaError):
            for name in self._store.sizes(HEARTBEATS_FOLDER):
                if name == self._name.rpartition("/")[2] or name.endswith(f"-by-{self._process}"):
                    self._store.remove(f"{HEARTBEATS_FOLDER}/{name}")


class OtherProcesses:
    """The other processes of a job, as of the last `refresh`.

    Args:
      process: number of this process.
    """

    def __init__(self, store: Store, process: int):
        self._store = store
        self._process = process
        self._seen: dict[int, tuple[Any, float]] = {}
        self._claims: set[tuple[int, int]] = set()

    def refresh(self) -> None:
        """Lists the folder again."""
        listed = self._store.stamps(HEARTBEATS_FOLDER)
        beats = {number: stamp for name, stamp in listed.items() if (number := _process(name)) is not None}
        now = time.monotonic()
        for number, stamp in beats.items():
            before = self._seen.get(number)
            if before is None or before[0] != stamp:
                self._seen[number] = (stamp, now)
        self._seen = {number: seen for number, seen in self._seen.items() if number in beats}
        self._claims = {claim for name in listed if (claim := _claim(name))}

    def is_alive(self, process: int) -> bool:
        return process in self._seen and time.monotonic() - self._seen[process][1] < HEARTBEAT_TIMEOUT

    def is_leader(self) -> bool:
        """Whether no process with a lower number is alive."""
        return not any(self.is_alive(process) for process in self._seen if process < self._process)

    def is_claimed(self, split: int) -> bool:
        """Whether another living process has claimed a split."""
        return any(by != self._process and self.is_alive(by) for claimed, by in self._claims if claimed == split)

    def claim(self, split: int) -> bool:
        """Claims a split for this process; False if a living process with a lower number has claimed it, too."""
        with self._store.replacing(f"{HEARTBEATS_FOLDER}/split-{split}-by-{self._process}"):
            pass
        self.refresh()
        if any(by < self._process and self.is_alive(by) for claimed, by in self._claims if claimed == split):
            self.release(split)  # or two processes that gave way to a third one would wait for each other
            return False
        return True

    def release(self, split: int) -> None:
        """Withdraws a claim."""
        self._store.remove(f"{HEARTBEATS_FOLDER}/split-{split}-by-{self._process}")


def _process(name: str) -> int | None:
    number = name.removeprefix("process-").removesuffix(".json")
    return int(number) if name.startswith("process-") and number.isdecimal() else None


def _claim(name: str) -> tuple[int, int] | None:
    split, _, process = name.removeprefix("split-").partition("-by-")
    return (int(split), int(process)) if split.isdecimal() and process.isdecimal() else None
