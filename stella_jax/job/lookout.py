"""Which processes of a job are alive, seen by whether their journals grow; no clock is compared with another."""

import json
import time

from stella_jax.job.progress import journal_name
from stella_jax.job.store import Store

# Seconds of silence after which a process counts as dead; it writes every 5 (30 into an object store), unless it
# compiles or a batch takes long. To be wrong costs some work that is done twice.
PATIENCE = 120


class Lookout:
    """Watches the journals in a job's folder."""

    def __init__(self, store: Store):
        self._store = store
        self._seen: dict[str, tuple[int | None, float]] = {}

    def alive(self, journal: str) -> bool:
        """Whether this journal has grown within PATIENCE, as far as this process has seen."""
        size, now = self._store.size(journal), time.monotonic()
        before = self._seen.get(journal)
        if before is None or before[0] != size:
            self._seen[journal] = (size, now)
            return True
        return now - before[1] < PATIENCE

    def taken(self, count: int, but: int) -> set[str]:
        """Names of the parts that living processes among `count` are working on, those of process `but` aside."""
        found: set[str] = set()
        for process in range(count):
            journal = journal_name(process)
            if process != but and self._store.size(journal) is not None and self.alive(journal):
                found |= self._open(journal)
        return found

    def _open(self, journal: str) -> set[str]:
        lines = self._store.read(journal).splitlines()
        try:
            return set(json.loads(lines[-1])["open"])
        except (IndexError, ValueError, KeyError, TypeError):  # read while it was written, or hurt by a full disk
            return set()
