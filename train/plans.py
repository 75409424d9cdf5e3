"""Which rows form which batch: pure functions of (seed, epoch), the same on any number of hosts and after a resume."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from stella_jax.errors import StellaError
from train.data import Dataset
from train.recipe import MOST_EPOCHS, MOST_STEPS

Plan = list[np.ndarray]  # a batch is the numbers of its rows

BLOCK = 2**16  # rows that are Python's numbers at a time
NOT_REPEATED = -1


class SetBatch(NamedTuple):
    """A batch: the number of its set, and those of its rows there."""

    set: int
    rows: np.ndarray


def one_pass(
    dataset: Dataset, batch_size: int, sampler: str, seed: int, number: int, drop_last: bool = False, place: int = 0
) -> Plan:
    """The batches of one pass through a dataset.

    Args:
      sampler: "sequential" is the order of the file; "shuffle" another one each pass; "no_duplicates" is shuffled,
        and a row waits for a later batch where this one has one of its texts, in whichever column. Its batches may
        then be more, and short ones among them.
      number: of the pass, from 0.
      drop_last: leaves out batches that are not full.
      place: of the dataset among others.
    """
    count = len(dataset)
    order = np.arange(count) if sampler == "sequential" else _rng(seed, number, place).permutation(count)
    if sampler == "no_duplicates":
        plan = _without_duplicates(order, dataset.text_codes, batch_size)
    else:
        plan = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    return [batch for batch in plan if len(batch) == batch_size] if drop_last else plan


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)  # which takes zeros at the end for nothing


def _without_duplicates(order: np.ndarray, texts: np.ndarray, batch_size: int) -> Plan:
    """Gives each row, in order, the first batch with room that comes after all batches with one of its texts."""
    is_repeated = np.bincount(texts.ravel()) > 1
    places, sizes = np.empty(len(order), np.int64), []
    room = _Room()
    first_free: dict[int, int] = {}  # repeated text -> the batch after the last one that has it
    for start in range(0, len(order), BLOCK):  # as lists, numbers take many times the memory
        ids = texts[order[start : start + BLOCK]]
        for i, row in enumerate(np.where(is_repeated[ids], ids, NOT_REPEATED).tolist(), start):
            batch = room.first(max([first_free.get(text, 0) for text in row]))
            if batch == len(sizes):
                sizes.append(0)
            places[i] = batch
            sizes[batch] += 1
            if sizes[batch] == batch_size:
                room.fill(batch)
            for text in row:
                if text != NOT_REPEATED:
                    first_free[text] = batch + 1
    return np.split(order[np.argsort(places, kind="stable")], np.cumsum(sizes)[:-1])


class _Room:
    """Which batches are full; finds the next that is not, in next to no time (a union-find)."""

    def __init__(self):
        self._next: dict[int, int] = {}

    def fill(self, batch: int) -> None:
        self._next[batch] = batch + 1

    def first(self, batch: int) -> int:
        """The first batch from this one on that is not full."""
        passed = []
        while batch in self._next:
            passed.append(batch)
            batch = self._next[batch]
        for full in passed:
            self._next[full] = batch
        return batch


def most_frequent(dataset: Dataset) -> tuple[str, int]:
    """The text that most rows have, and in how many places it stands."""
    texts = dataset.text_codes
    counts = np.bincount(texts.ravel())
    row, column = np.argwhere(texts == counts.argmax())[0]
    return list(dataset.texts.values())[column][row], int(counts.max())


def poor_batches(dataset: Dataset, plan: Plan) -> int:
    """Batches of a single row, or with one text in all of their rows: there is nothing in them to tell apart."""
    return sum(len(batch) == 1 or _share_a_text(dataset.text_codes[batch]) for batch in plan)


def _share_a_text(texts: np.ndarray) -> bool:
    return any((texts == text).any(axis=1).all() for text in texts[0])


class BatchPlan:
    """Which rows each step of a whole training takes; steps are counted from 0, and `done` of them are made.

    A batch is of one set. Proportional batches: in each epoch a set of weight w goes through w passes of its rows, a
    fraction of a pass goes on in the next epoch, and the batches of all sets come in random order. In turns
    (round_robin): in each epoch every set begins a pass, and has w turns where one of weight 1 has one, until a set has
    no batch left.

    Attributes:
      steps: how many there are.

    Args:
      datasets: the sets.
      weights: of the sets; none is 1 each.
      batches: "proportional" or "round_robin".
      max_steps: ends after so many steps, in place of `epochs`.
      others: as in `one_pass`.

    Raises:
      StellaError: a set has no batch, or the weights leave none.
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
        self._weights = {place: weight for place, weight in enumerate(weights) if weight > 0}
        self._seed = seed

        def one(place: int, number: int) -> Plan:
            return one_pass(datasets[place], batch_size, sampler, seed, number, drop_last, place)

        self._pass = lru_cache(len(datasets))(one)
        self._epoch = lru_cache(1)(self._in_turns if batches == "round_robin" else self._in_proportion)
        for place in self._weights:
            if not self._pass(place, 0):
                raise StellaError(
                    f"{datasets[place].source}: no batch of the first epoch has {batch_size} rows, and data.drop_last "
                    "leaves out all others; lower loop.batch_size or set data.drop_last = false."
                )
        # Epochs need not be equally long.
        varies = sampler == "no_duplicates" or any(weight % 1 for weight in self._weights.values())
        self._ends = [len(self._epoch(0))]
        while self._ends[-1] < max_steps if max_steps else len(self._ends) < epochs:
            if len(self._ends) == MOST_EPOCHS or self._ends[-1] > MOST_STEPS:
                raise StellaError(
                    f"loop: the run takes over {MOST_EPOCHS:,} epochs or {MOST_STEPS:,} steps; lower loop.epochs or "
                    "loop.max_steps."
                )
            length = len(self._epoch(len(self._ends) if varies else 0))
            self._ends.append(self._ends[-1] + length)
        self.steps: int = max_steps or self._ends[-1]
        if not self.steps:
            raise StellaError("data.sets: their weights leave no batch; raise them or loop.epochs.")

    def _in_proportion(self, epoch: int) -> list[SetBatch]:
        sets = [self._between(place, weight * epoch, weight * (epoch + 1)) for place, weight in self._weights.items()]
        order = np.repeat(np.arange(len(sets)), [len(batches) for batches in sets])
        left = [iter(batches) for batches in sets]
        return [next(left[i]) for i in _rng(self._seed, epoch, 0, 1).permutation(order)]

    def _between(self, place: int, start: float, end: float) -> list[SetBatch]:
        """The batches of a set from one number of passes, perhaps a fraction, to another."""
        batches: Plan = []
        for number in range(math.floor(start), math.ceil(end)):
            plan = self._pass(place, number)
            first, last = (round(len(plan) * min(max(at - number, 0), 1)) for at in (start, end))
            batches += plan[first:last]
        return [SetBatch(place, rows) for rows in batches]

    def _in_turns(self, epoch: int) -> list[SetBatch]:
        sets = {place: self._pass(place, epoch) for place in self._weights}
        turns = [((i + 1) / self._weights[place], place, i) for place, plan in sets.items() for i in range(len(plan))]
        first_end = min(len(plan) / self._weights[place] for place, plan in sets.items())
        return [SetBatch(place, sets[place][i]) for time, place, i in sorted(turns) if time <= first_end]

    def batch(self, step: int) -> SetBatch:
        """The batch of a step."""
        epoch, batch = self.position(step)
        return self._epoch(epoch)[batch]

    def position(self, step: int) -> tuple[int, int]:
        """Epoch and batch of a step."""
        epoch = bisect_right(self._ends, step)
        return epoch, step - self._begin(epoch)

    def epochs(self, done: int) -> float:
        """Epochs behind, as a fraction."""
        epoch, batch = self.position(done)
        return epoch + batch / (self._ends[epoch] - self._begin(epoch)) if batch else float(epoch)

    def due(self, every: str | int, done: int) -> bool:
        """Whether what happens "epoch" or every so many steps happens now; at the end it does."""
        often = done % every == 0 if isinstance(every, int) else done in (0, *self._ends)
        return often or done == self.steps

    def _begin(self, epoch: int) -> int:
        return self._ends[epoch - 1] if epoch else 0
