"""Finds rows that repeat the id of an earlier row, in memory that does not grow with the corpus.

Hashes of ids are written to a temporary file in sorted runs. Then one slice of the hash range at a time is read from
every run, sorted and searched. The result is another file, eight bytes per row, sparse where there are no repeats. The
files have no names, so that even SIGKILL leaves nothing behind.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

RUN_ROWS = 2**18
SLICES = 256
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])
FIRST = np.dtype("<i8")


class RepeatedIds:
    """Collects hashes of ids; a row's position is its place in the order of adding.

    Args:
      folder: for the temporary files: 24 bytes per row, and 8 more for rows near repeats.
    """

    def __init__(self, folder: Path):
        self._runs = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this object
        self._firsts = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._bounds: list[np.ndarray] = []
        self._pending: list[np.ndarray] = []
        self._pending_rows = 0
        self.rows = 0

    def __enter__(self) -> "RepeatedIds":
        return self

    def __exit__(self, *raised: object) -> None:
        self._runs.close()
        self._firsts.close()

    def add(self, high: np.ndarray, low: np.ndarray) -> None:
        """Adds rows, by the two halves of the hashes of their ids, (n,) uint64 each."""
        entries = np.empty(len(high), ENTRY)
        entries["high"], entries["low"] = high, low
        entries["position"] = np.arange(self.rows, self.rows + len(high))
        self.rows += len(high)
        self._pending.append(entries)
        self._pending_rows += len(high)
        if self._pending_rows >= RUN_ROWS:
            self._flush()

    def find(self) -> int:
        """Searches all rows; returns how many repeat the id of an earlier one."""
        self._flush()
        return sum(self._search(self._slice(i)) for i in range(SLICES))

    def firsts(self, start: int, stop: int) -> np.ndarray:
        """For rows start to stop: the position of the first row with the same id, -1 if it is the row itself."""
        size = (stop - start) * FIRST.itemsize
        stored = os.pread(self._firsts.fileno(), size, start * FIRST.itemsize).ljust(size, b"\0")
        return np.frombuffer(stored, FIRST) - 1

    def _flush(self) -> None:
        """Writes the pending rows as a sorted run."""
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
        """Records the repeats in a slice; returns their number."""
        entries = _candidates(entries)
        entries = entries[np.lexsort((entries["position"], entries["low"], entries["high"]))]
        repeats = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
        if not repeats.any():
            return 0
        starts = np.concatenate([[True], ~repeats])
        firsts = entries["position"][np.maximum.accumulate(np.where(starts, np.arange(len(entries)), 0))]
        for position, first in zip(entries["position"][~starts].tolist(), firsts[~starts].tolist(), strict=True):
            os.pwrite(self._firsts.fileno(), (first + 1).to_bytes(8, "little"), position * FIRST.itemsize)
        return int(repeats.sum())


def _candidates(entries: np.ndarray) -> np.ndarray:
    """The entries that share the high half of their hash with another; usually few, so that sorting them is cheap."""
    highs = np.sort(entries["high"])
    repeated = highs[1:][highs[1:] == highs[:-1]]
    if not len(repeated):
        return entries[:0]
    places = np.searchsorted(repeated, entries["high"])
    return entries[repeated.take(places, mode="clip") == entries["high"]]
