"""Which processes of a job are alive, seen by whether their journals grow; no clock is compared with another."""

import json
import time
from typing import Any

from stella_jax.job.progress import journal_name
from stella_jax.job.store import Store

# Seconds of silence after which a process counts as dead; it writes every 5 (30 into an object store), unless it
# compiles or a batch takes long. To be wrong costs some work that is done twice.
PATIENCE = 120

# The same after it has said that it stopped: so long may processes that are started together be apart.
STOPPED_PATIENCE = 30


class Lookout:
    """Watches the journals in a job's folder."""

    def __init__(self, store: Store):
        self._store = store
        self._seen: dict[str, tuple[int | None, float]] = {}

    def alive(self, journal: str, patience: float | None = None) -> bool:
        """Whether this journal has grown within so many seconds (None: PATIENCE), as far as this process has seen."""
        size, now = self._store.size(journal), time.monotonic()
        before = self._seen.get(journal)
        if before is None or before[0] != size:
            self._seen[journal] = (size, now)
            return True
        return now - before[1] < (PATIENCE if patience is None else patience)

    def stopped(self, journal: str) -> bool:
        """Whether its process has said so, and no new one has begun for a while: it may be of an earlier run."""
        return not self.alive(journal, STOPPED_PATIENCE) and self._last(journal).get("phase") == "stopped"

    def taken(self, count: int, but: int) -> set[str]:
        """Names of the parts that living processes among `count` are working on, those of process `but` aside."""
        found: set[str] = set()
        for process in range(count):
            journal = journal_name(process)
            if process != but and self._store.size(journal) is not None and self.alive(journal):
                found |= set(self._last(journal).get("open") or ())
        return found

    def leads(self, process: int) -> bool:
        """Whether no process of a lower number lives, as far as this one has seen."""
        lives = [self._lives(journal_name(other)) for other in range(process)]  # watches all, whoever is found
        return not any(lives)

    def _lives(self, journal: str) -> bool:
        return self._store.size(journal) is not None and self.alive(journal) and not self.stopped(journal)

    def _last(self, journal: str) -> dict[str, Any]:
        """The last line, without fields where it was read while it was written, or hurt by a full disk."""
        lines = self._store.read(journal).splitlines() if self._store.size(journal) else []
        try:
            return dict(json.loads(lines[-1]))
        except (IndexError, ValueError, TypeError):
            return {}
