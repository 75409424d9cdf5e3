"""Checkpoints of a run, written by Orbax: the newest ones and the best.

A save that is killed half-way leaves no checkpoint. Orbax does not notice flipped bytes, so every array is stored with
its hash; a checkpoint with a wrong hash is moved aside and the one before it is used.
"""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from stella_jax.checkpoint.hashes import sha256_of_array
from stella_jax.checkpoint.orbax_store import quiet, writing
from stella_jax.cpu_count import cpu_count
from stella_jax.errors import StellaError, first_line
from stella_jax.sharding import shard_as
from train.hosts import Hosts
from train.step import State

Arrays = dict[str, np.ndarray]
Record = dict[str, Any]

CHECKPOINTS_FOLDER = "checkpoints"
DAMAGED = "damaged"  # beside it, for damaged checkpoints


class Checkpoints:
    """The checkpoints of a run.

    Args:
      output: the run's directory.
      keep: how many of the newest to keep, besides the one with the highest score (the first of equals).
      newest: the step that the run resumes from, or 0.

    Attributes:
      newest: the step of the newest checkpoint, which may still be being written; 0 for none.
    """

    def __init__(self, output: Path, keep: int, newest: int):
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: (metrics["score"], -metrics["step"]),  # pyright: ignore
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy: Any = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
        self._folder = output / CHECKPOINTS_FOLDER
        self._hosts = Hosts()
        with writing(self._folder, ""):
            self._checkpointer = ocp.training.Checkpointer(
                str(self._folder.absolute()),
                preservation_policy=policy,
                cleanup_tmp_directories=True,
            )
        self.newest = newest
        there = [(saved.step, saved.metrics is not None) for saved in self._checkpointer.checkpoints]
        self._scored: dict[int, bool] = dict(self._hosts.broadcast(there))

    def save(self, state: State, record: Record, score: float | None = None) -> None:
        """Starts saving a state in the background; the state may be donated once this returns.

        Saving a step again does nothing, unless it had no score and now has one: its evaluation was interrupted.

        Args:
          record: JSON values to store with it.
          score: the state's evaluation; higher is better.

        Raises:
          OSError: this save or the one before failed.
        """
        step = int(state.step)
        if step in self._scored and (score is None or self._scored[step]):
            return
        arrays = self._to_host(state)
        metrics: Any = None if score is None else {"score": score, "step": step}
        beside: Any = record | {"sha256": _hashes(arrays) if self._hosts.is_primary else {}}
        with writing(self._folder, ""):
            self._checkpointer.save_async(
                step, arrays, force=True, overwrite=step in self._scored, metrics=metrics, custom_metadata=beside
            )
        self.newest, self._scored[step] = step, score is not None

    def close(self) -> None:
        """Waits for the last save.

        Raises:
          OSError: it failed.
        """
        with writing(self._folder, ""):
            self._checkpointer.close()

    def _to_host(self, state: State) -> Arrays:
        """Copies of the arrays in process 0, which writes them: the next step donates the state's buffers."""
        copied = np.array if self._hosts.is_primary else _like
        return {name: copied(self._hosts.fetch(leaf)) for name, leaf in flat(state).items()}


def steps_of(output: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    folder = output / CHECKPOINTS_FOLDER
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def read_newest(output: Path, like: State, warn: Callable[[str], object]) -> State | None:
    """Reads the newest valid state; None if there are no checkpoints.

    Args:
      like: a state with the arrays' names, shapes and shardings.
      warn: called with a sentence for each damaged checkpoint, which is moved to `DAMAGED`.

    Raises:
      StellaError: all of them are damaged.
    """
    steps = steps_of(output)
    for step in reversed(steps):
        try:
            return read_state(output, step, like)
        except StellaError as error:
            aside = output / DAMAGED / str(step)
            _move(output / CHECKPOINTS_FOLDER / str(step), aside)
            warn(f"{error} Moved it to {aside}; using the checkpoint before it.")
    if steps:
        folder = output / CHECKPOINTS_FOLDER
        raise StellaError(f"{folder}: all checkpoints are damaged; remove {output} to start again.")
    return None


def read_state(output: Path, step: int, like: State) -> State:
    """Reads the state after `step` steps.

    Args:
      like: a state with the arrays' names, shapes and shardings.

    Raises:
      StellaError: the checkpoint is damaged or has other parameters.
    """
    wanted = flat(like)
    templates = {name: _like(leaf) for name, leaf in wanted.items()}
    arrays, record = _read(output, step, templates)
    hashes = record["sha256"]
    wrong = [name for name, found in _hashes(arrays).items() if hashes.get(name) != found]
    if wrong or arrays.keys() != wanted.keys():
        why = f"the hash of {wrong[0]} is wrong" if wrong else "its parameters are not those of the model"
        raise _damaged(output, step, why)
    return unflat({name: shard_as(array, wanted[name].sharding) for name, array in arrays.items()}, like)


def newest_record(output: Path) -> Record | None:
    """The record of the newest checkpoint whose record can be read; None if there is none."""
    records = (_record(output, step) for step in reversed(steps_of(output)))
    return next((record for record in records if record), None)


def _record(output: Path, step: int) -> Record | None:
    try:
        with quiet(""), _alone():
            record = ocp.metadata(_path(output, step)).custom_metadata
    except Exception:  # Orbax raises many kinds
        return None
    return record if isinstance(record, dict) and isinstance(record.get("sha256"), dict) else None


def _read(output: Path, step: int, templates: Arrays) -> tuple[Arrays, Record]:
    record = _record(output, step)
    if record is None:
        raise _damaged(output, step, "its metadata cannot be read")
    try:
        with quiet(""), _alone():
            arrays = ocp.load(_path(output, step), templates)
        return {name: np.asarray(array) for name, array in arrays.items()}, record
    except Exception as error:  # Orbax raises many kinds
        raise _damaged(output, step, first_line(error)[:200].rstrip(":")) from error


def _damaged(output: Path, step: int, why: str) -> StellaError:
    return StellaError(f"{output / CHECKPOINTS_FOLDER / str(step)}: damaged checkpoint ({why}).")


def _path(output: Path, step: int) -> str:
    return str((output / CHECKPOINTS_FOLDER / str(step)).absolute())


def _like(leaf: jax.Array) -> np.ndarray:
    """A placeholder of this shape and dtype, which takes no memory."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _alone() -> ocp.Context:
    """An Orbax context of this process alone, without barriers with the other processes of the run."""
    context, own = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = own, {own}
    return context


def flat(state: State) -> dict[str, jax.Array]:
    """The arrays of a state by name, which is their path in the tree."""
    named = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}
    return {name: _without_key_type(leaf) for name, leaf in named.items()}


def unflat(arrays: Mapping[str, jax.Array], like: State) -> State:
    """The inverse of `flat`, for a state with the structure of `like`."""

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        array = arrays[_name(path)]
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else array

    return jax.tree.map_with_path(place, like)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key_type(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _hashes(arrays: Arrays) -> dict[str, str]:
    with ThreadPoolExecutor(cpu_count()) as pool:
        return dict(zip(arrays, pool.map(sha256_of_array, arrays.values()), strict=True))


def _move(path: Path, aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    path.rename(aside)
