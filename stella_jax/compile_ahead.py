"""Compiles programs for batches of fixed shapes in threads, while other batches run."""

from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress

from stella_jax.cpu_count import cpu_count

MAX_THREADS = 16

Shape = tuple[int, int]  # rows and tokens of a batch


class CompileAhead:
    """Compiles each shape once.

    Args:
      compile: compiles for a shape, so that the call through `jax.jit` finds the program in its cache.
    """

    def __init__(self, compile: Callable[[Shape], object]):
        self._compile = compile
        self._shapes: dict[Shape, Future[object]] = {}
        # XLA releases Python's lock while it compiles.
        threads = max(2, min(MAX_THREADS, cpu_count() // 2))
        self._pool = ThreadPoolExecutor(threads, "compile")

    def start(self, shapes: Iterable[Shape]) -> None:
        """Starts compiling the new ones among these shapes, in this order."""
        for shape in shapes:
            if shape not in self._shapes:
                self._shapes[shape] = self._pool.submit(self._compile, shape)

    def wait(self, shape: Shape) -> None:
        """Waits for a shape that was passed to `start`; raises what its compilation raised."""
        if compiled := self._shapes.get(shape):
            with suppress(CancelledError):
                compiled.result()

    def cancel(self) -> None:
        """Cancels the compilations that have not started yet."""
        for shape, compiled in list(self._shapes.items()):
            if compiled.cancel():
                self._shapes.pop(shape, None)
