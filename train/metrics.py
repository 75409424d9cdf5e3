"""Metrics of a run: metrics.jsonl, one object a line, and the writers of `log_writers`.

A line is `{"step", "epoch", "loss", "grad_norm", "learning_rate", ...}` for each step, counted from 1, and
`{"step", "epoch", "eval": {...}}` for each evaluation, with `test` instead of `eval` for the test split. A resumed run
drops the lines after the step that it resumes from.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stella_jax.storage.atomic import replacing
from train.log_writers import LogWriter, scalars

Line = dict[str, Any]

FILE = "metrics.jsonl"
EVAL_SPLITS = ("eval", "test")


class MetricsLog:
    """The metrics file in `output`, opened to append lines.

    Args:
      step: the step that the run resumes from; later lines are dropped.
      to_file: whether this process writes the file; else lines stay in memory.
      writers: receive each line too, and are closed at the end.

    Attributes:
      lines: all of them, in order.
    """

    def __init__(self, output: Path, step: int, to_file: bool = True, writers: Sequence[LogWriter] = ()):
        self.path = output / FILE
        self.lines = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        self._file = None
        self._writers = writers
        if to_file:
            with replacing(self.path) as file:
                file.writelines(_encoded(line) for line in self.lines)
            self._file = self.path.open("ab")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type | None, *raised: object) -> None:
        if self._file:
            self._file.close()
        for writer in self._writers:
            writer.close(failed=kind is not None)

    def write(self, line: Line) -> None:
        """Appends a line and flushes it, so that a killed process does not lose it; NaN becomes null."""
        self.lines.append(line)
        if self._file:
            self._file.write(_encoded(line))
            self._file.flush()
        for writer in self._writers:
            writer.write(line["step"], scalars(line))

    def steps(self) -> list[Line]:
        """The lines of steps."""
        return [line for line in self.lines if not any(split in line for split in EVAL_SPLITS)]

    def evaluations(self, split: str) -> list[Line]:
        """The lines of evaluations of a split."""
        return [line for line in self.lines if split in line]

    def evaluation(self, split: str, step: int) -> dict[str, float] | None:
        """The scores of the evaluation after `step` steps, or None."""
        return next((line[split] for line in self.evaluations(split) if line["step"] == step), None)


def read_metrics(path: Path) -> Iterator[Line]:
    """The lines of a file up to the first incomplete one, which a kill may leave."""
    if not path.exists():
        return
    for text in path.read_bytes().splitlines(keepends=True):
        try:
            line = json.loads(text)
        except ValueError:
            return
        if not text.endswith(b"\n") or not isinstance(line, dict) or not isinstance(line.get("step"), int):
            return
        yield line


def _encoded(line: Line) -> bytes:
    return json.dumps(_finite(line), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as None, for JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
