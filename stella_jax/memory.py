"""Fast copies of large arrays: aligned as JAX on CPU wants them, transposed in strips, and in threads."""

import math
import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from stella_jax.cpu_count import cpu_count

Result = TypeVar("Result")

# Columns of a matrix that are transposed at a time: a cache line of each stays in the processor's cache until full.
STRIP = 32

# Threads that are enough for copies and hashes to use the memory's bandwidth.
THREADS = 8


def aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An uninitialized contiguous array that starts at a page, so that JAX on CPU uses it without a copy.

    JAX needs a multiple of 64 bytes, which numpy's memory rarely is. Numpy also requests huge pages, with which loading
    took twice the processor time on the virtual machine where it was measured (bench/LOG.md).
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8, size).view(dtype).reshape(shape)


def copy(source: np.ndarray, into: np.ndarray) -> None:
    """Does `into[...] = source`, in strips if the source's last axis is not its contiguous one."""
    near, last = int(np.argmin([*source.strides, math.inf])), source.ndim - 1
    if source.ndim < 2 or near == last:
        into[...] = source
        return
    source, into = (np.moveaxis(array, (near, last), (-2, -1)) for array in (source, into))
    for index in np.ndindex(source.shape[:-2]):
        for start in range(0, source.shape[-1], STRIP):
            strip = (*index, slice(None), slice(start, start + STRIP))
            into[strip] = source[strip].astype(into.dtype, order="C")


def in_threads(function: Callable[[int], Result], count: int) -> list[Result]:
    """Calls the function with 0 to count - 1 in threads; for copies and hashes, which release Python's lock."""
    if count == 1:
        return [function(0)]
    with ThreadPoolExecutor(min(THREADS, cpu_count())) as pool:
        return list(pool.map(function, range(count)))
