"""Threads beside the one that feeds the device: one prepares its next inputs, another stores its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
END: Any = object()


@contextmanager
def prefetch(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """The items, made by a thread up to `depth` ahead of the caller.

    An error is raised in place of the item that it prevented. The thread has ended when the block ends.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, "prefetch")

    pending: deque[Future[T]] = deque(pool.submit(next, iterator, END) for _ in range(depth))

    def stream() -> Iterator[T]:
        while (item := pending.popleft().result()) is not END:
            pending.append(pool.submit(next, iterator, END))
            yield item

    try:
        yield stream()
    finally:
        pool.shutdown(cancel_futures=True)


class BackgroundWriter:
    """Runs work in a thread, in order; at most `depth` pieces wait.

    Errors are raised by a later `submit` or at the end of the block. If the block fails, submitted work is still done.

    Args:
      on_result: called with each result, in the caller's thread.
    """

    def __init__(self, depth: int, on_result: Callable[[Any], object]):
        self._pool = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Future[Any]] = deque()
        self._depth = depth
        self._on_result = on_result

    def submit(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._waiting.append(self._pool.submit(work, *arguments))
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > self._depth):
            self._on_result(self._waiting.popleft().result())

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, kind: type | None, *raised: object) -> None:
        try:
            while self._waiting and kind is None:
                self._on_result(self._waiting.popleft().result())
        finally:
            self._pool.shutdown()
