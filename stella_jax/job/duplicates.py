"""Which rows repeat the id of an earlier one, found in memory that does not grow with the corpus.

Ids become 128-bit hashes (two of 1e9 ids collide with probability 1e-21). They go to a temporary file in sorted runs;
then one slice of all hashes at a time, taken from every run, is sorted and searched. The answer is a second file, eight
bytes a row and sparse where there are no repeats. Both files have no name, so that even SIGKILL leaves nothing behind.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

RUN_ROWS = 2**18
SLICES = 256
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])
FIRST = np.dtype("<i8")


class Duplicates:
    """Collects (id, position) with `add`, positions ascending; `find` closes the collection and makes `firsts` answer.

    Args:
      folder: where the temporary files lie; 24 bytes a row, and 8 more for those in a region with repeats.
    """

    def __init__(self, folder: Path):
        self._entries = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  they live as long as this object
        self._firsts = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._run = bytearray()
        self._bounds: list[np.ndarray] = []
        self._written = 0

    def add(self, row_id: str, position: int) -> None:
        self._run += hashlib.blake2b(row_id.encode(), digest_size=16).digest() + position.to_bytes(8, "little")
        if len(self._run) == RUN_ROWS * ENTRY.itemsize:
            self._flush()

    def find(self) -> int:
        """Searches all that was added; returns how many rows repeat an earlier one."""
        self._flush()
        self._entries.flush()
        found = sum(self._search(self._slice(i)) for i in range(SLICES))
        self._entries.close()
        return found

    def firsts(self, start: int, stop: int) -> np.ndarray:
        """For rows start to stop: the position of the first row with the same id, -1 where that is the row itself."""
        size = (stop - start) * FIRST.itemsize
        stored = os.pread(self._firsts.fileno(), size, start * FIRST.itemsize).ljust(size, b"\0")
        return np.frombuffer(stored, FIRST) - 1

    def close(self) -> None:
        self._entries.close()
        self._firsts.close()

    def _flush(self) -> None:
        """Writes a run, sorted, and keeps where its slices begin."""
        entries = np.frombuffer(bytes(self._run), ENTRY)
        entries = entries[np.argsort(entries["high"], kind="stable")]
        edges = np.arange(1, SLICES, dtype=np.uint64) << np.uint64(64 - 8)
        inner = np.searchsorted(entries["high"], edges)
        self._bounds.append(self._written + np.concatenate([[0], inner, [len(entries)]]))
        self._entries.write(entries.tobytes())
        self._written += len(entries)
        self._run.clear()

    def _slice(self, i: int) -> np.ndarray:
        pieces = [self._read(bounds[i], bounds[i + 1]) for bounds in self._bounds]
        entries = np.frombuffer(b"".join(pieces), ENTRY)
        return entries[np.lexsort((entries["position"], entries["low"], entries["high"]))]

    def _read(self, start: int, stop: int) -> bytes:
        return os.pread(self._entries.fileno(), int(stop - start) * ENTRY.itemsize, int(start) * ENTRY.itemsize)

    def _search(self, entries: np.ndarray) -> int:
        """Notes the repeats in one sorted slice."""
        repeats = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
        if not repeats.any():
            return 0
        starts = np.concatenate([[True], ~repeats])
        firsts = entries["position"][np.maximum.accumulate(np.where(starts, np.arange(len(entries)), 0))]
        for position, first in zip(entries["position"][~starts], firsts[~starts], strict=True):
            os.pwrite(self._firsts.fileno(), int(first + 1).to_bytes(8, "little"), int(position) * FIRST.itemsize)
        return int(repeats.sum())
