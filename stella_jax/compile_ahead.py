"""Programs for batches of fixed shapes, compiled in threads while others are at work."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress

# XLA compiles outside of Python's lock.
THREADS = max(2, min(16, (os.cpu_count() or 1) // 2))

Shape = tuple[int, int]  # rows and tokens of a batch


class CompileAhead:
    """Compiles each shape once.

    Args:
      compile: compiles for a shape what a call by `jax.jit` will find there.
    """

    def __init__(self, compile: Callable[[Shape], object]):
        self._compile = compile
        self._shapes: dict[Shape, Future[object]] = {}
        self._pool = ThreadPoolExecutor(THREADS, "compile")

    def begin(self, shapes: Iterable[Shape]) -> None:
        """Starts to compile missing programs, in this order."""
        for shape in shapes:
            if shape not in self._shapes:
                self._shapes[shape] = self._pool.submit(self._compile, shape)

    def wait(self, shape: Shape) -> None:
        """Waits for a shape that `begin` was called with; raises what compiling it raised."""
        if compiled := self._shapes.get(shape):
            with suppress(CancelledError):
                compiled.result()

    def cancel(self) -> None:
        """Cancels compilations that have not started."""
        for shape, compiled in list(self._shapes.items()):
            if compiled.cancel():
                self._shapes.pop(shape, None)
