"""What is told of each step, one step late: the host prepares the next batch while a device works on this one."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from train.metrics import Metrics

ORDER = ("loss", "grad_norm", "learning_rate")
SHOWN = {"loss": "loss", "learning_rate": "lr", "tokens_per_second": "tokens/s"}


class Reporter:
    """Tells metrics.jsonl and a bar.

    Args:
      check: called with the number and the metrics of each step before they are told.
      total, done: steps of the whole training, and of those the ones already made.
      shown: whether there is a bar on stderr.
    """

    def __init__(
        self,
        metrics: Metrics,
        check: Callable[[int, Mapping[str, float]], object],
        total: int,
        done: int,
        shown: bool,
    ):
        self._metrics = metrics
        self._check = check
        self._bar = tqdm(total=total, initial=done, unit=" steps", disable=not shown, dynamic_ncols=True)
        self._waiting: tuple[dict[str, Any], int, dict[str, jax.Array]] | None = None
        self._since = time.perf_counter()

    def add(self, step: int, epoch: float, tokens: int, found: dict[str, jax.Array]) -> None:
        """A step is on its way; the one before it is told.

        Args:
          step: its number, from 1.
          tokens: of the texts in its batch.
          found: what it will return.
        """
        self.flush()
        self._waiting = {"step": step, "epoch": round(epoch, 6)}, tokens, found

    def flush(self) -> dict[str, float]:
        """Waits for the step on its way, tells of it, and returns its metrics; none where none is on its way."""
        if self._waiting is None:
            return {}
        (line, tokens, found), self._waiting = self._waiting, None
        values = {name: float(value) for name, value in found.items()}
        self._check(line["step"], values)
        now = time.perf_counter()
        line |= (
            {name: values[name] for name in ORDER if name in values}
            | values
            | {"tokens_per_second": round(tokens / (now - self._since), 1)}
        )
        self._since = now
        self._metrics.write(line)
        self._bar.set_postfix({name: f"{line[key]:.4g}" for key, name in SHOWN.items()}, refresh=False)
        self._bar.update()
        return values

    def resume(self) -> None:
        """What lies between two steps is over: the time that it took is not theirs."""
        self._since = time.perf_counter()

    def close(self) -> None:
        self._bar.close()
