"""Writers of metrics to TensorBoard and Weights & Biases, chosen by the recipe's loop.log.

A resumed run continues its logs. TensorBoard drops its events of later steps; Weights & Biases keeps them, and the
repeated steps give the same numbers.
"""

import importlib
import importlib.util
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from stella_jax.errors import StellaError, first_line

TENSORBOARD, WANDB = "tensorboard", "wandb"  # packages, their extras and their folders in a run's output


class LogWriter(Protocol):
    """Writes the metrics of one step after the other."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


def check_log(log: Sequence[str]) -> None:
    """Refuses a package that is not installed.

    Raises:
      StellaError: it is not installed.
    """
    for name in log:
        if importlib.util.find_spec(name) is None:
            raise StellaError(f"loop.log: {name} is not installed; pip install 'stella-jax[{name}]' or leave it out.")


def open_log(log: Sequence[str], output: Path, step: int, recipe: Mapping[str, Any]) -> list[LogWriter]:
    """Opens the writers named in a recipe's loop.log.

    Args:
      output: the run's directory.
      step: the step that the run resumes from, 0 at its start.
      recipe: stored with the run on Weights & Biases.

    Raises:
      StellaError: Weights & Biases cannot be used.
    """
    kinds = {TENSORBOARD: _TensorBoard, WANDB: _Wandb}
    return [kinds[name](output, step, recipe) for name in dict.fromkeys(log)]


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by name of the curve, such as "train/loss" or "eval/cosine_accuracy"."""
    return dict(_scalars(line))


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{name}", number) for name, number in value.items())
        elif key != "step":
            yield f"train/{key}", value


class _TensorBoard:
    """TensorBoard events in the folder `tensorboard`, written as torch's SummaryWriter does."""

    def __init__(self, output: Path, step: int, recipe: Mapping[str, Any]):
        self._events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        module = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._writer = module.EventFileWriter(str(output / TENSORBOARD))
        start = self._events.SessionLog(status=self._events.SessionLog.START)  # drops events from this step on
        self._add(step + 1 if step else 0, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        found = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=self._summaries.Summary(value=found))

    def close(self, failed: bool) -> None:
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._events.Event(step=step, wall_time=time.time(), **content))
        self._writer.flush()  # so that a kill loses no step that metrics.jsonl has


class _Wandb:
    """A Weights & Biases run, whose id is kept in the folder `wandb`; honors WANDB_PROJECT and the like."""

    def __init__(self, output: Path, step: int, recipe: Mapping[str, Any]):
        wandb = importlib.import_module("wandb")
        try:
            self._run = wandb.init(
                dir=str(output),
                id=_run_id(output / WANDB / "run_id", step),
                resume="allow",
                name=output.name,
                config=dict(recipe),
                reinit="create_new",
                settings=wandb.Settings(console="off"),
            )
        except wandb.errors.Error as error:
            raise StellaError(
                f"loop.log: wandb: {first_line(error)}; run `wandb login` or set WANDB_MODE=offline."
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _run_id(path: Path, step: int) -> str:
    """The id of the resumed run, or a new one."""
    if step and path.exists():
        return path.read_text().strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(uuid.uuid4().hex[:8] + "\n")
    return _run_id(path, 1)
