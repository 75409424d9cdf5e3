"""Orbax checkpoints of parameters: written with one leaf in memory at a time, and read as plain files."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from orbax.checkpoint import v1 as ocp

from stella_jax.checkpoint.directory import Directory
from stella_jax.errors import StellaError, join_words, short_repr

# The folder of the parameters in a converted checkpoint.
PARAMS = "params"

# Zarr's names of the supported dtypes.
DTYPES: dict[str, np.dtype] = {
    "<f4": np.dtype(np.float32),
    "<f2": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Fields of a leaf's `.zarray` beside shape and dtype.
ZARRAY = {"zarr_format": 2, "order": "C", "compressor": None, "filters": None, "dimension_separator": "."}
REMEDY = "convert the checkpoint again, or save it in one chunk a leaf, with use_ocdbt, use_zarr3, use_compression off"

# The system's error number in the messages of TensorStore, whose errors have no errno.
ERRNO = re.compile(r"os_error_code='(\d+)'")


def save_leaf(directory: Path, path: str, array: np.ndarray) -> None:
    """Adds the leaf "a/b/c". `directory`, whose name must not start with a dot, appears with `finish_saving`.

    Raises:
      OSError: it cannot be written.
    """
    with _context(), writing(directory):
        ocp.partial.save(str(directory.absolute()), _nest(path, array))


def finish_saving(directory: Path) -> None:
    """Completes the checkpoint at `directory` with the leaves saved so far.

    Raises:
      OSError: it cannot be written.
    """
    with _context(), writing(directory):
        ocp.partial.finalize(str(directory.absolute()))


@dataclass(frozen=True, slots=True)
class StoredLeaf:
    """The location of one leaf; `array` maps it."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The stored numbers as a read-only map of the file, which is closed with the array."""
        return np.asarray(np.memmap(self.path, self.dtype, mode="r", shape=self.shape))


def stored_leaves(directory: Directory) -> dict[str, StoredLeaf]:
    """All leaves of a checkpoint by name; the leaf "a/b/c" has the name "a.b.c".

    Orbax itself does not read these files, since it would follow links, open pipes and archives, and trust the sizes in
    them. A leaf is a Zarr array (format 2) of one uncompressed chunk, so its file has exactly the size of its numbers.

    Raises:
      StellaError: the leaves are stored in another format, or a file is missing or outside of the checkpoint.
    """
    state = directory.path(f"{PARAMS}/state")
    if directory.has(f"{PARAMS}/state/manifest.ocdbt"):
        raise StellaError(f"{state}: parameters in an OCDBT database are not supported; {REMEDY}.")
    if not state.is_dir():
        raise StellaError(f"{state}: folder not found; convert the checkpoint again.")
    names = sorted(entry.name for entry in os.scandir(state) if entry.is_dir())
    return {name: _stored_leaf(directory, f"{PARAMS}/state/{name}") for name in names}


def _stored_leaf(directory: Directory, folder: str) -> StoredLeaf:
    name = f"{folder}/.zarray"
    fields = directory.json_object(name)
    shape = fields.get("shape")
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
        raise StellaError(
            f"{directory.path(name)}: shape must be a list of whole numbers, not {short_repr(shape)}; {REMEDY}."
        )
    dtype = fields.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        known = join_words(DTYPES)
        raise StellaError(f"{directory.path(name)}: dtype = {short_repr(dtype)} is not supported; supported: {known}.")
    for field, value in {**ZARRAY, "chunks": shape}.items():
        if fields.get(field) != value:
            raise StellaError(
                f"{directory.path(name)}: {field} = {short_repr(fields.get(field))} is not supported; {REMEDY}."
            )
    chunk = f"{folder}/{'.'.join('0' for _ in shape)}"
    if not directory.has(chunk):
        raise StellaError(f"{directory.path(chunk)}: file not found; convert the checkpoint again.")
    leaf = StoredLeaf(directory.path(chunk), DTYPES[dtype], tuple(shape))
    size, needed = leaf.path.stat().st_size, prod(shape) * leaf.dtype.itemsize
    if size != needed:
        raise StellaError(f"{leaf.path}: {size} bytes, not {short_repr(needed)}; convert the checkpoint again.")
    return leaf


def _context() -> ocp.Context:
    context = ocp.Context()
    context.array.saving.use_ocdbt = False  # plain files can be checked and mapped
    context.array.saving.use_zarr3 = False
    context.array.saving.use_compression = False  # weights shrink by 8 %, at twice the time
    context.memory.deepcopy_host_arrays = False  # leaves do not change while they are written
    return context


@contextmanager
def writing(directory: Path, *others: str) -> Iterator[None]:
    """Turns Orbax's errors about writing into the system's OSError."""
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
    """Silences the loggers of Orbax, and others, which log what is raised or returned anyway."""
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
