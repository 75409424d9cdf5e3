"""Ending before the work is done: a wish to stop, and a grace period in which open parts may be finished."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The job was asked to stop and has; what it finished is kept."""


class GracefulShutdown:
    """Whether to stop.

    Outside `deferred` there is nothing to finish, and asking raises Stopped at once.

    Args:
      grace: seconds that open parts get.
    """

    def __init__(self, grace: float):
        self.grace = grace
        self._is_deferred = False
        self._deadline: float | None = None

    @property
    def requested(self) -> bool:
        return self._deadline is not None

    def request(self) -> None:
        """Asks to stop; a second time, at once."""
        if self.requested or not self._is_deferred:
            raise Stopped
        self._deadline = time.monotonic() + self.grace

    def check(self) -> None:
        """Raises Stopped once the grace period is over."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise Stopped

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that looks at `requested` and `check`; afterwards, if it was asked to, it has stopped."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.requested:
            raise Stopped


@contextmanager
def stopping_on_sigterm(stop: GracefulShutdown) -> Iterator[None]:
    """SIGTERM, as schedulers send it before they kill, asks to stop while the block runs (in the main thread)."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.request()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
