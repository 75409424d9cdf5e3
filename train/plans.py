"""Batch plans: which rows form each batch, a pure function of (seed, epoch) on any number of hosts."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from stella_jax.errors import StellaError
from train.data import Dataset
from train.sections import MAX_EPOCHS, MAX_STEPS

Plan = list[np.ndarray]  # the row indices of each batch

BLOCK = 2**16  # rows that are converted to Python ints at a time
NOT_REPEATED = -1


class SetBatch(NamedTuple):
    """A batch: the index of its set, and the indices of its rows in that set."""

    set: int
    rows: np.ndarray


def one_pass(
    dataset: Dataset, batch_size: int, sampler: str, seed: int, number: int, drop_last: bool = False, set_index: int = 0
) -> Plan:
    """The batches of one pass through a dataset.

    Args:
      sampler: "sequential" keeps the order of the file; "shuffle" shuffles each pass; "no_duplicates" shuffles too, and
        moves a row to a later batch if this one has one of its texts in any column. That may give more batches, some
        of them short.
      number: index of the pass, from 0.
      drop_last: leave out batches that are not full.
      set_index: index of the dataset among the sets.
    """
    count = len(dataset)
    order = np.arange(count) if sampler == "sequential" else _rng(seed, number, set_index).permutation(count)
    if sampler == "no_duplicates":
        plan = _without_duplicates(order, dataset.text_codes, batch_size)
    else:
        plan = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    return [batch for batch in plan if len(batch) == batch_size] if drop_last else plan


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)  # which ignores trailing zeros


def _without_duplicates(order: np.ndarray, texts: np.ndarray, batch_size: int) -> Plan:
    """Puts each row, in order, into the first batch with room after all batches that have one of its texts."""
    is_repeated = np.bincount(texts.ravel()) > 1
    batch_of_row, sizes = np.empty(len(order), np.int64), []
    room = _Room()
    first_free: dict[int, int] = {}  # repeated text -> the batch after the last one that has it
    for start in range(0, len(order), BLOCK):  # lists of ints take many times the memory of arrays
        ids = texts[order[start : start + BLOCK]]
        for i, row in enumerate(np.where(is_repeated[ids], ids, NOT_REPEATED).tolist(), start):
            batch = room.first(max([first_free.get(text, 0) for text in row]))
            if batch == len(sizes):
                sizes.append(0)
            batch_of_row[i] = batch
            sizes[batch] += 1
            if sizes[batch] == batch_size:
                room.fill(batch)
            for text in row:
                if text != NOT_REPEATED:
                    first_free[text] = batch + 1
    return np.split(order[np.argsort(batch_of_row, kind="stable")], np.cumsum(sizes)[:-1])


class _Room:
    """Finds the next batch that is not full, by union-find."""

    def __init__(self):
        self._next: dict[int, int] = {}

    def fill(self, batch: int) -> None:
        self._next[batch] = batch + 1

    def first(self, batch: int) -> int:
        """The first batch that is not full, starting with this one."""
        passed = []
        while batch in self._next:
            passed.append(batch)
            batch = self._next[batch]
        for full in passed:
            self._next[full] = batch
        return batch


def most_frequent(dataset: Dataset) -> tuple[str, int]:
    """The most frequent text, and how often it occurs in all columns."""
    texts = dataset.text_codes
    counts = np.bincount(texts.ravel())
    row, column = np.argwhere(texts == counts.argmax())[0]
    return list(dataset.texts.values())[column][row], int(counts.max())


def poor_batches(dataset: Dataset, plan: Plan) -> int:
    """The number of batches with a single row, or with one text in all rows: a loss has nothing to contrast there."""
    return sum(len(batch) == 1 or _share_a_text(dataset.text_codes[batch]) for batch in plan)


def _share_a_text(texts: np.ndarray) -> bool:
    return any((texts == text).any(axis=1).all() for text in texts[0])


class BatchPlan:
    """The rows of each step of a whole training; steps count from 0, and `done` is the number of completed steps.

    Each batch has rows of one set. With "proportional" batches, an epoch has w passes of a set of weight w (the rest of
    a fractional pass comes in the next epoch), and the batches of all sets are shuffled. With "round_robin" batches, an
    epoch starts a pass of every set, takes w batches of a set of weight w for each of a set of weight 1, and ends when
    a set has no more.

    Attributes:
      steps: number of steps.

    Args:
      datasets: the sets.
      batch_size, sampler, seed, drop_last: as in `one_pass`.
      epochs: number of epochs.
      max_steps: number of steps, overrides `epochs`.
      weights: of the sets; empty is 1 each.
      batches: "proportional" or "round_robin".

    Raises:
      StellaError: a set has no batch, the weights leave none, or there are too many epochs or steps.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        batch_size: int,
        sampler: str,
        seed: int,
        epochs: int,
        drop_last: bool = False,
        max_steps: int | None = None,
        *,
        weights: Sequence[float] = (),
        batches: str = "proportional",
    ):
        weights = weights or [1.0] * len(datasets)
        self._weights = {set_index: weight for set_index, weight in enumerate(weights) if weight > 0}
        self._seed = seed

        def pass_of_set(set_index: int, number: int) -> Plan:
            return one_pass(datasets[set_index], batch_size, sampler, seed, number, drop_last, set_index)

        self._pass = lru_cache(len(datasets))(pass_of_set)
        self._epoch = lru_cache(1)(self._round_robin if batches == "round_robin" else self._proportional)
        for set_index in self._weights:
            if not self._pass(set_index, 0):
                raise StellaError(
                    f"{datasets[set_index].source}: no batch of the first epoch has {batch_size} rows, and "
                    "data.drop_last drops all others; lower loop.batch_size or set data.drop_last = false."
                )
        # Epochs may differ in length.
        varies = sampler == "no_duplicates" or any(weight % 1 for weight in self._weights.values())
        self._ends = [len(self._epoch(0))]
        while self._ends[-1] < max_steps if max_steps else len(self._ends) < epochs:
            if len(self._ends) == MAX_EPOCHS or self._ends[-1] > MAX_STEPS:
                raise StellaError(
                    f"loop: the run takes over {MAX_EPOCHS:,} epochs or {MAX_STEPS:,} steps; lower loop.epochs or "
                    "loop.max_steps."
                )
            length = len(self._epoch(len(self._ends) if varies else 0))
            self._ends.append(self._ends[-1] + length)
        self.steps: int = max_steps or self._ends[-1]
        if not self.steps:
            raise StellaError("data.sets: the weights leave no batch; raise them or loop.epochs.")

    def _proportional(self, epoch: int) -> list[SetBatch]:
        sets = [
            self._between(set_index, weight * epoch, weight * (epoch + 1))
            for set_index, weight in self._weights.items()
        ]
        order = np.repeat(np.arange(len(sets)), [len(batches) for batches in sets])
        left = [iter(batches) for batches in sets]
        return [next(left[i]) for i in _rng(self._seed, epoch, 0, 1).permutation(order)]

    def _between(self, set_index: int, start: float, end: float) -> list[SetBatch]:
        """The batches of a set between two numbers of passes, which may be fractions."""
        batches: Plan = []
        for number in range(math.floor(start), math.ceil(end)):
            plan = self._pass(set_index, number)
            first, last = (round(len(plan) * min(max(at - number, 0), 1)) for at in (start, end))
            batches += plan[first:last]
        return [SetBatch(set_index, rows) for rows in batches]

    def _round_robin(self, epoch: int) -> list[SetBatch]:
        sets = {set_index: self._pass(set_index, epoch) for set_index in self._weights}
        turns = [
            ((i + 1) / self._weights[set_index], set_index, i)
            for set_index, plan in sets.items()
            for i in range(len(plan))
        ]
        first_end = min(len(plan) / self._weights[set_index] for set_index, plan in sets.items())
        return [SetBatch(set_index, sets[set_index][i]) for time, set_index, i in sorted(turns) if time <= first_end]

    def batch(self, step: int) -> SetBatch:
        """The batch of a step."""
        epoch, batch = self.position(step)
        return self._epoch(epoch)[batch]

    def position(self, step: int) -> tuple[int, int]:
        """Epoch and batch of a step."""
        epoch = bisect_right(self._ends, step)
        return epoch, step - self._start(epoch)

    def epochs(self, done: int) -> float:
        """Completed epochs, as a fraction."""
        epoch, batch = self.position(done)
        return epoch + batch / (self._ends[epoch] - self._start(epoch)) if batch else float(epoch)

    def due(self, every: str | int, done: int) -> bool:
        """Whether an action with interval `every`, "epoch" or a number of steps, is due; always at the last step."""
        is_multiple = done % every == 0 if isinstance(every, int) else done in (0, *self._ends)
        return is_multiple or done == self.steps

    def _start(self, epoch: int) -> int:
        return self._ends[epoch - 1] if epoch else 0
