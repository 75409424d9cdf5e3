"""Reporting of steps, one step late, so that the host prepares the next batch while the device works on this one."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from train.metrics import MetricsLog

ORDER = ("loss", "grad_norm", "learning_rate")
SHOWN = {"loss": "loss", "learning_rate": "lr", "tokens_per_second": "tokens/s"}


class Reporter:
    """Writes each step to metrics.jsonl and a progress bar.

    Args:
      metrics: the run's metrics.
      check: called with the number and the metrics of each step before they are written.
      total: steps of the whole training.
      done: steps already completed.
      show_progress: whether to show a bar on stderr.
    """

    def __init__(
        self,
        metrics: MetricsLog,
        check: Callable[[int, Mapping[str, float]], object],
        total: int,
        done: int,
        show_progress: bool,
    ):
        self._metrics = metrics
        self._check = check
        self._bar = tqdm(total=total, initial=done, unit=" steps", disable=not show_progress, dynamic_ncols=True)
        self._waiting: tuple[dict[str, Any], int, dict[str, jax.Array]] | None = None
        self._since = time.perf_counter()

    def add(self, step: int, epoch: float, tokens: int, found: dict[str, jax.Array]) -> None:
        """Registers a dispatched step, and writes the one before it.

        Args:
          step: its number, from 1.
          epoch: completed epochs after it.
          tokens: number of tokens in its batch.
          found: its metrics, which may still be computing.
        """
        self.flush()
        self._waiting = {"step": step, "epoch": round(epoch, 6)}, tokens, found

    def flush(self) -> dict[str, float]:
        """Waits for the dispatched step, writes it, and returns its metrics; {} if there is none."""
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
        """Restarts the clock of tokens per second, after an evaluation or a save."""
        self._since = time.perf_counter()

    def close(self) -> None:
        self._bar.close()
