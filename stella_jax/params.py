"""The Orbax checkpoint of a parameter tree, written and read leaf by leaf, so that one leaf is in memory at a time."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from stella_jax.errors import StellaError, first_line

# Folder of a converted checkpoint that holds the parameters.
PARAMS = "params"

# How the storage library under Orbax, whose errors are texts, gives the system's error number.
ERRNO = re.compile(r"os_error_code='(\d+)'")


def save_leaf(directory: Path, path: str, array: np.ndarray) -> None:
    """Adds the leaf "a/b/c"; nothing stands at `directory`, whose name has no leading dot, before `finish_saving`.

    Raises:
      OSError: it cannot be written.
    """
    with _context(), writing(directory):
        ocp.partial.save(str(directory.absolute()), _nest(path, array))


def finish_saving(directory: Path) -> None:
    """Makes the leaves saved so far the checkpoint at `directory`.

    Raises:
      OSError: it cannot be written.
    """
    with _context(), writing(directory):
        ocp.partial.finalize(str(directory.absolute()))


def leaf_types(directory: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every leaf by its path, without reading the numbers.

    Raises:
      StellaError: there is no whole Orbax checkpoint at `directory`.
    """
    try:
        with quiet():
            tree = ocp.metadata(str(directory.absolute())).metadata
    except Exception as error:  # Orbax raises several kinds
        raise StellaError(
            f"{directory} is no whole Orbax checkpoint; convert it again ({first_line(error)[:200]})."
        ) from error
    if tree is None:  # Orbax's answer to damaged metadata
        raise StellaError(f"{directory} is no whole Orbax checkpoint; convert it again.")
    return {path: (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in _flatten(tree).items()}


def load_leaf(directory: Path, path: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Reads one leaf.

    Raises:
      StellaError: its files are damaged.
    """
    like = np.broadcast_to(np.zeros((), dtype), shape)  # a shape and a dtype that take no memory
    try:
        with _context(), quiet():
            tree = ocp.load(str(directory.absolute()), _nest(path, like))
    except Exception as error:
        raise StellaError(
            f"{path} in {directory} cannot be read; convert it again ({first_line(error)[:200]})."
        ) from error
    array = _flatten(tree)[path]
    if array is like:  # Orbax's answer to a path that is not there
        raise StellaError(f"{path} is not in {directory}; convert it again.")
    return array


def _context() -> ocp.Context:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    context.array.saving.use_compression = False  # weights shrink by 8 %, at twice the time
    context.memory.deepcopy_host_arrays = False  # nobody changes a leaf while it is written
    return context


@contextmanager
def writing(directory: Path, *others: str) -> Iterator[None]:
    """Turns what Orbax raises when the system cannot write into the system's own error."""
    try:
        with quiet(*others):
            yield
    except Exception as error:
        code = ERRNO.search(str(error))
        if code is None or isinstance(error, OSError):
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(directory)) from error


@contextmanager
def quiet(*others: str) -> Iterator[None]:
    """Keeps Orbax, and other loggers, from logging what it then raises or returns, tracebacks of threads included."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", *others)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _nest(path: str, leaf: Any) -> dict[str, Any]:
    for name in reversed(path.split("/")):
        leaf = {name: leaf}
    return leaf


def _flatten(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    below = (_flatten(leaf, f"{path}/{name}" if path else str(name)) for name, leaf in tree.items())
    return {name: leaf for flat in below for name, leaf in flat.items()}
