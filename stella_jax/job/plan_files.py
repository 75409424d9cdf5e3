"""The plan of a job as it lies in the job's folder, made by one process and read by all.

`plan/parts.bin` has an entry a part, `plan/repeats.bin` one for each row whose id came before: its position (counting
the records of all inputs from 0) and that of the first row of the id, ascending.
"""

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from stella_jax.job.duplicates import Duplicates
from stella_jax.job.plan import Part
from stella_jax.job.scanner import PART
from stella_jax.job.store import Damaged, Store

FOLDER = "plan"
PARTS = f"{FOLDER}/parts.bin"
REPEATS = f"{FOLDER}/repeats.bin"
NAMES = (PARTS, REPEATS)

# An entry of parts.bin: what the scan knows of the part, and how many repeats lie before it.
ENTRY = np.dtype([*PART.descr, ("repeats", "<i8")])
REPEAT = np.dtype([("position", "<i8"), ("first", "<i8")])


def write_plan(store: Store, parts: Sequence[Part], table: np.ndarray, duplicates: Duplicates) -> dict[str, str]:
    """Writes both files; returns their sha256 by name.

    Args:
      table: dtype PART, an entry a part.
    """
    bounds = [0, *accumulate(part.records for part in parts)]
    entries = np.zeros(len(parts) + 1, ENTRY)
    for name in PART.names or ():
        entries[name][:-1] = table[name]
    hashes = {}
    with store.replacing(REPEATS) as file:
        for i in range(len(parts)):
            repeats = _repeats(duplicates, bounds[i], bounds[i + 1])
            file.write(repeats.tobytes())
            entries["repeats"][i + 1] = entries["repeats"][i] + len(repeats)
        hashes[REPEATS] = _hash(file)
    with store.replacing(PARTS) as file:
        file.write(entries.tobytes())
        hashes[PARTS] = _hash(file)
    return hashes


class PlanFiles:
    """Reads the plan back.

    Raises:
      Damaged: the files are not those of these hashes.
    """

    def __init__(self, store: Store, hashes: dict[str, str]):
        for name in NAMES:
            if store.size(name) is None:
                raise Damaged(f"{store}/{name} is missing.")
            with store.open(name) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != hashes.get(name):
                    raise Damaged(f"{store}/{name} is damaged.")
        self._store = store
        self._entries = np.frombuffer(store.read(PARTS), ENTRY)

    def entry(self, number: int) -> np.void:
        """What the scan knows of a part, dtype ENTRY."""
        return self._entries[number]

    @property
    def rows(self) -> int:
        return int(self._entries["rows"].sum())

    def rows_of(self, numbers: Sequence[int]) -> int:
        """Rows of these parts."""
        return int(self._entries["rows"][list(numbers)].sum())

    def repeats(self, number: int) -> dict[int, int]:
        """Position -> position of the first row of the same id, for the rows of a part that repeat one."""
        start, stop = (int(x) for x in self._entries["repeats"][number : number + 2])
        if start == stop:
            return {}
        with self._store.open(REPEATS) as file:
            file.seek(start * REPEAT.itemsize)
            found = np.frombuffer(file.read((stop - start) * REPEAT.itemsize), REPEAT)
        return dict(zip(found["position"].tolist(), found["first"].tolist(), strict=True))


def _repeats(duplicates: Duplicates, start: int, stop: int) -> np.ndarray:
    firsts = duplicates.firsts(start, stop)
    places = np.flatnonzero(firsts >= 0)
    repeats = np.zeros(len(places), REPEAT)
    repeats["position"], repeats["first"] = start + places, firsts[places]
    return repeats


def _hash(file: Any) -> str:
    file.flush()
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
