"""Two threads beside the one that feeds the device: one prepares what comes next, one puts away what is done."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
END: Any = object()


@contextmanager
def prefetch(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """The items, of which a thread makes the next `depth` while the caller works on one.

    What making one raises is raised where it would have been handed out. At the end of the block the thread has ended.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, "prefetch")

    coming: deque[Future[T]] = deque(pool.submit(next, iterator, END) for _ in range(depth))

    def stream() -> Iterator[T]:
        while (item := coming.popleft().result()) is not END:
            coming.append(pool.submit(next, iterator, END))
            yield item

    try:
        yield stream()
    finally:
        pool.shutdown(cancel_futures=True)


class BackgroundWriter:
    """Does work in a thread, in order, while the caller goes on; at most `depth` pieces wait.

    What work raises is raised at a later `do` or at the end of the block. Where the block itself fails, work that was
    handed over is done all the same.

    Args:
      done: called with each result, in the caller's thread.
    """

    def __init__(self, depth: int, done: Callable[[Any], object]):
        self._pool = ThreadPoolExecutor(1, "writer")
        self._waiting: deque[Future[Any]] = deque()
        self._depth = depth
        self._done = done

    def do(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._waiting.append(self._pool.submit(work, *arguments))
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > self._depth):
            self._done(self._waiting.popleft().result())

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, kind: type | None, *raised: object) -> None:
        try:
            while self._waiting and kind is None:
                self._done(self._waiting.popleft().result())
        finally:
            self._pool.shutdown()
