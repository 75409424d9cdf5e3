"""Stops work early, with a grace period in which open parts can be finished."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The work ended because a stop was requested; finished work is kept."""


class GracefulShutdown:
    """A request to stop, and when it takes effect: at once, or, in a `deferred` block, after a grace period.

    Args:
      grace: seconds to finish open work.
    """

    def __init__(self, grace: float):
        self.grace = grace
        self._is_deferred = False
        self._deadline: float | None = None

    @property
    def requested(self) -> bool:
        return self._deadline is not None

    def request(self) -> None:
        """Requests a stop; raises Stopped outside of `deferred`, or the second time."""
        if self.requested or not self._is_deferred:
            raise Stopped
        self._deadline = time.monotonic() + self.grace

    def check(self) -> None:
        """Raises Stopped once the grace period is over."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise Stopped

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that observes `requested` and `check`; at its end Stopped is raised if a stop was requested."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.requested:
            raise Stopped


@contextmanager
def stopping_on_sigterm(stop: GracefulShutdown) -> Iterator[None]:
    """A block (in the main thread) in which SIGTERM, as schedulers send it before SIGKILL, requests a stop."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.request()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
