"""Which rows repeat the id of an earlier one, found in memory that does not grow with the corpus.

Ids become 128-bit hashes (two of 1e9 ids collide with probability 1e-21). They go to temporary files in sorted runs;
then one slice of all hashes at a time, taken from every run, is sorted and searched. The answer is one more file, eight
bytes a row and sparse where there are no repeats. No file has a name, so that even SIGKILL leaves nothing behind.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stella_jax.job.hashing import Tick

RUN_ROWS = 2**18
SLICES = 256
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])
FIRST = np.dtype("<i8")


class Runs:
    """Writes (hash of the id, position) in sorted runs; `end` tells where the slices of each begin.

    Args:
      file: at its end; 24 bytes a row.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._run = bytearray()
        self._bounds: list[np.ndarray] = []
        self._written = 0

    def add(self, row_id: str, position: int) -> None:
        self._run += hashlib.blake2b(row_id.encode(), digest_size=16).digest() + position.to_bytes(8, "little")
        if len(self._run) == RUN_ROWS * ENTRY.itemsize:
            self._flush()

    def end(self) -> list[np.ndarray]:
        """Writes what is left; returns for each run the SLICES + 1 bounds of its slices, in entries of the file."""
        self._flush()
        self._file.flush()
        return self._bounds

    def _flush(self) -> None:
        entries = np.frombuffer(bytes(self._run), ENTRY)
        entries = entries[np.argsort(entries["high"], kind="stable")]
        edges = np.arange(1, SLICES, dtype=np.uint64) << np.uint64(64 - 8)
        inner = np.searchsorted(entries["high"], edges)
        self._bounds.append(self._written + np.concatenate([[0], inner, [len(entries)]]))
        self._file.write(entries.tobytes())
        self._written += len(entries)
        self._run.clear()


class Duplicates:
    """Collects (id, position), in any order; `find` closes the collection and makes `firsts` answer.

    Ids come by `add`, or by `take` from the files that others wrote as `Runs`.

    Args:
      folder: where the temporary files lie; 24 bytes a row, and 8 more for those in a region with repeats.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: list[BinaryIO] = []
        self._bounds: list[tuple[int, np.ndarray]] = []
        self._firsts = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this object
        self._own = self.file()
        self._runs = Runs(self._own)

    def file(self) -> BinaryIO:
        """A new file for runs, which is gone when this object is closed."""
        self._files.append(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
        return self._files[-1]

    def add(self, row_id: str, position: int) -> None:
        self._runs.add(row_id, position)

    def take(self, file: BinaryIO, bounds: Sequence[np.ndarray]) -> None:
        """Adds what was written to a file of `file`, with what `Runs.end` returned."""
        self._bounds += [(file.fileno(), run) for run in bounds]

    def find(self, tick: Tick = lambda _: None) -> int:
        """Searches all that was added; returns how many rows repeat an earlier one."""
        self.take(self._own, self._runs.end())
        found = 0
        for i in range(SLICES):
            found += self._search(self._slice(i))
            tick(0)
        self._close_runs()
        return found

    def firsts(self, start: int, stop: int) -> np.ndarray:
        """For rows start to stop: the position of the first row with the same id, -1 where that is the row itself."""
        size = (stop - start) * FIRST.itemsize
        stored = os.pread(self._firsts.fileno(), size, start * FIRST.itemsize).ljust(size, b"\0")
        return np.frombuffer(stored, FIRST) - 1

    def close(self) -> None:
        self._close_runs()
        self._firsts.close()

    def _close_runs(self) -> None:
        for file in self._files:
            with suppress(OSError):  # a full disk's error, which was raised already
                file.close()

    def _slice(self, i: int) -> np.ndarray:
        return np.frombuffer(b"".join(_read(file, run[i], run[i + 1]) for file, run in self._bounds), ENTRY)

    def _search(self, entries: np.ndarray) -> int:
        """Notes the repeats in one slice."""
        entries = _doubled(entries)
        entries = entries[np.lexsort((entries["position"], entries["low"], entries["high"]))]
        repeats = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
        if not repeats.any():
            return 0
        starts = np.concatenate([[True], ~repeats])
        firsts = entries["position"][np.maximum.accumulate(np.where(starts, np.arange(len(entries)), 0))]
        for position, first in zip(entries["position"][~starts], firsts[~starts], strict=True):
            os.pwrite(self._firsts.fileno(), int(first + 1).to_bytes(8, "little"), int(position) * FIRST.itemsize)
        return int(repeats.sum())


def _read(file: int, start: int, stop: int) -> bytes:
    return os.pread(file, int(stop - start) * ENTRY.itemsize, int(start) * ENTRY.itemsize)


def _doubled(entries: np.ndarray) -> np.ndarray:
    """The entries half of whose hash stands in more than one: few as a rule, and only they need to be put in order."""
    highs = np.sort(entries["high"])
    doubled = highs[1:][highs[1:] == highs[:-1]]
    if not len(doubled):
        return entries[:0]
    places = np.searchsorted(doubled, entries["high"])
    return entries[doubled.take(places, mode="clip") == entries["high"]]
