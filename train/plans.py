"""Which rows form which batch: pure functions of (seed, epoch), the same on any number of hosts and after a resume."""

from bisect import bisect_right
from functools import lru_cache

import numpy as np

from stella_jax.errors import StellaError
from train.data import Dataset

Plan = list[np.ndarray]  # a batch is the numbers of its rows


def epoch_plan(dataset: Dataset, batch_size: int, sampler: str, seed: int, epoch: int, drop_last: bool = False) -> Plan:
    """The batches of an epoch.

    Args:
      sampler: "sequential" is the order of the file; "shuffle" another one each epoch; "no_duplicates" is shuffled,
        and a row waits for a later batch where this one has one of its texts, in whichever column. Its batches may
        then be more, and short ones among them.
      epoch: from 0.
      drop_last: leaves out batches that are not full.
    """
    count = len(dataset)
    order = np.arange(count) if sampler == "sequential" else np.random.default_rng([seed, epoch]).permutation(count)
    if sampler == "no_duplicates":
        plan = _without_duplicates(order, text_numbers(dataset), batch_size)
    else:
        plan = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    return [batch for batch in plan if len(batch) == batch_size] if drop_last else plan


def text_numbers(dataset: Dataset) -> np.ndarray:
    """(rows, columns) a number for each text, the same for the same text in any column."""
    numbers: dict[str, int] = {}
    columns = [[numbers.setdefault(text, len(numbers)) for text in texts] for texts in dataset.texts.values()]
    return np.array(columns).T


def _without_duplicates(order: np.ndarray, texts: np.ndarray, batch_size: int) -> Plan:
    """Gives each row, in order, the first batch with room that comes after all batches with one of its texts."""
    batches: list[list[int]] = []
    room = _Room()
    first_free: dict[int, int] = {}  # text -> the batch after the last one that has it
    for row, ids in zip(order.tolist(), texts[order].tolist(), strict=True):
        batch = room.first(max(first_free.get(text, 0) for text in ids))
        while batch >= len(batches):
            batches.append([])
        batches[batch].append(row)
        if len(batches[batch]) == batch_size:
            room.fill(batch)
        for text in ids:
            first_free[text] = batch + 1
    return [np.array(batch) for batch in batches]


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
    texts = text_numbers(dataset)
    counts = np.bincount(texts.ravel())
    row, column = np.argwhere(texts == counts.argmax())[0]
    return list(dataset.texts.values())[column][row], int(counts.max())


def poor_batches(dataset: Dataset, plan: Plan) -> int:
    """Batches of a single row, or with one text in all of their rows: there is nothing in them to tell apart."""
    texts = text_numbers(dataset)
    return sum(len(batch) == 1 or _share_a_text(texts[batch]) for batch in plan)


def _share_a_text(texts: np.ndarray) -> bool:
    return any((texts == text).any(axis=1).all() for text in texts[0])


class BatchPlan:
    """Which rows each step of a whole training takes; steps are counted from 0, and `done` of them are made.

    Attributes:
      steps: how many there are.

    Args:
      max_steps: ends after so many steps, in place of `epochs`.
      others: as in `epoch_plan`.

    Raises:
      StellaError: the first epoch has no batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        sampler: str,
        seed: int,
        epochs: int,
        drop_last: bool = False,
        max_steps: int | None = None,
    ):
        def plan(epoch: int) -> Plan:
            return epoch_plan(dataset, batch_size, sampler, seed, epoch, drop_last)

        self._plan = lru_cache(1)(plan)
        first = len(plan(0))
        if not first:
            raise StellaError(
                f"{dataset.source}: no batch of the first epoch has {batch_size} rows, and data.drop_last leaves out "
                "all others; lower loop.batch_size or set data.drop_last = false."
            )
        self._ends = [first]  # of each epoch; those of `no_duplicates` need not be equally long
        while self._ends[-1] < max_steps if max_steps else len(self._ends) < epochs:
            length = len(plan(len(self._ends))) if sampler == "no_duplicates" else first
            self._ends.append(self._ends[-1] + length)
        self.steps: int = max_steps or self._ends[-1]

    def rows(self, step: int) -> np.ndarray:
        """The numbers of the rows of a step."""
        epoch, batch = self.position(step)
        return self._plan(epoch)[batch]

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
