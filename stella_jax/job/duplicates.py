"""Which rows repeat the id of an earlier one, found in memory that does not grow with the corpus.

Hashes of ids go to a temporary file in sorted runs; then one slice of all hashes at a time, taken from every run, is
sorted and searched. The answer is one more file, eight bytes a row and sparse where there are no repeats. The files
have no name, so that even SIGKILL leaves nothing behind.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

RUN_ROWS = 2**18
SLICES = 256
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])
FIRST = np.dtype("<i8")


class Duplicates:
    """Collects hashes of ids, whose positions are the order in which they are added.

    Args:
      folder: where the temporary files lie: 24 bytes a row, and 8 more for those in a region with repeats.
    """

    def __init__(self, folder: Path):
        self._runs = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this object
        self._firsts = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._bounds: list[np.ndarray] = []
        self._pending: list[np.ndarray] = []
        self._pending_rows = 0
        self.rows = 0

    def __enter__(self) -> "Duplicates":
        return self

    def __exit__(self, *raised: object) -> None:
        self._runs.close()
        self._firsts.close()

    def add(self, high: np.ndarray, low: np.ndarray) -> None:
        """Adds rows by the two halves of their ids' hashes, (n,) uint64 each."""
        entries = np.empty(len(high), ENTRY)
        entries["high"], entries["low"] = high, low
        entries["position"] = np.arange(self.rows, self.rows + len(high))
        self.rows += len(high)
        self._pending.append(entries)
        self._pending_rows += len(high)
        if self._pending_rows >= RUN_ROWS:
            self._flush()

    def find(self) -> int:
        """Searches all that was added; returns how many rows repeat an earlier one."""
        self._flush()
        return sum(self._search(self._slice(i)) for i in range(SLICES))

    def firsts(self, start: int, stop: int) -> np.ndarray:
        """For rows start to stop: the position of the first row with the same id, -1 where that is the row itself."""
        size = (stop - start) * FIRST.itemsize
        stored = os.pread(self._firsts.fileno(), size, start * FIRST.itemsize).ljust(size, b"\0")
        return np.frombuffer(stored, FIRST) - 1

    def _flush(self) -> None:
        """Writes what waits as a run."""
        if not self._pending_rows:
            return
        entries = np.concatenate(self._pending)
        entries = entries[np.argsort(entries["high"])]
        edges = np.arange(1, SLICES, dtype=np.uint64) << np.uint64(64 - 8)
        inner = np.searchsorted(entries["high"], edges)
        written = self.rows - self._pending_rows
        self._bounds.append(written + np.concatenate([[0], inner, [len(entries)]]))
        self._runs.write(entries.data)
        self._runs.flush()
        self._pending, self._pending_rows = [], 0

    def _slice(self, i: int) -> np.ndarray:
        return np.concatenate([self._read(run[i], run[i + 1]) for run in self._bounds] or [np.empty(0, ENTRY)])

    def _read(self, start: int, stop: int) -> np.ndarray:
        size = int(stop - start) * ENTRY.itemsize
        return np.frombuffer(os.pread(self._runs.fileno(), size, int(start) * ENTRY.itemsize), ENTRY)

    def _search(self, entries: np.ndarray) -> int:
        """Notes the repeats in one slice."""
        entries = _doubled(entries)
        entries = entries[np.lexsort((entries["position"], entries["low"], entries["high"]))]
        repeats = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
        if not repeats.any():
            return 0
        starts = np.concatenate([[True], ~repeats])
        firsts = entries["position"][np.maximum.accumulate(np.where(starts, np.arange(len(entries)), 0))]
        for position, first in zip(entries["position"][~starts].tolist(), firsts[~starts].tolist(), strict=True):
            os.pwrite(self._firsts.fileno(), (first + 1).to_bytes(8, "little"), position * FIRST.itemsize)
        return int(repeats.sum())


def _doubled(entries: np.ndarray) -> np.ndarray:
    """The entries half of whose hash stands in more than one: few as a rule, and only they need to be put in order."""
    highs = np.sort(entries["high"])
    doubled = highs[1:][highs[1:] == highs[:-1]]
    if not len(doubled):
        return entries[:0]
    places = np.searchsorted(doubled, entries["high"])
    return entries[doubled.take(places, mode="clip") == entries["high"]]
