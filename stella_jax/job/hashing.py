"""Which file an input is: its size and sha256, of many files at once."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event
from typing import Any, NamedTuple

from stella_jax.cpu_count import cpu_count
from stella_jax.job.location import Location

# Called often, by what may take long, with the number of rows read since.
Tick = Callable[[int], object]

BLOCK = 2**20
TICK_SECONDS = 1.0


class Identity(NamedTuple):
    """By which a file is known again."""

    size: int
    sha256: str


class Hasher:
    """The sha256 of a file whose pieces may come more than once and with gaps: `rest` reads what has not come in turn.

    So a file that is read from its beginning to its end is read but once, whatever its reader looks up besides.
    """

    def __init__(self, tick: Tick):
        self._tick = tick
        self._sha256 = hashlib.sha256()
        self._size = 0

    def add(self, at: int, data: memoryview) -> None:
        """Takes of a piece of the file, which begins at byte `at`, what comes next."""
        if at <= self._size < at + len(data):
            self._sha256.update(data[self._size - at :])
            self._size = at + len(data)
            self._tick(0)

    def rest(self, location: Location) -> Identity:
        with location.open() as file:
            file.seek(self._size)
            while data := file.read(BLOCK):
                self.add(self._size, memoryview(data))
        return Identity(self._size, self._sha256.hexdigest())


@dataclass(frozen=True, slots=True)
class Hashed(Location):
    """A location whose bytes are hashed as they are read."""

    hasher: Hasher = field(compare=False)

    def open(self) -> io.BufferedReader:
        return io.BufferedReader(_Hashing(Location.open(self), self.hasher), BLOCK)


class _Hashing(io.RawIOBase):
    def __init__(self, file: io.BufferedReader, hasher: Hasher):
        self._file = file
        self._hasher = hasher

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        at, size = self._file.tell(), self._file.readinto(buffer)
        self._hasher.add(at, memoryview(buffer)[:size])
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


def identify(location: Location, tick: Tick) -> Identity:
    """Reads a file to its end; raises as `Location.open` does."""
    return Hasher(tick).rest(location)


def identify_all(locations: Iterable[Location], tick: Tick) -> list[Identity]:
    """Of each file, as many at a time as there are cores; of several that cannot be read, the first raises."""
    stopped = Event()

    def go_on(_: int) -> None:
        if stopped.is_set():
            raise _Stopped

    with ThreadPoolExecutor(cpu_count()) as pool:  # they wait for the disk, or hash without the interpreter
        try:
            return [_result(future, tick) for future in [pool.submit(identify, each, go_on) for each in locations]]
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """Nobody waits for the hash any more."""


def _result(future: Future[Identity], tick: Tick) -> Identity:
    while not wait([future], TICK_SECONDS).done:
        tick(0)
    tick(0)
    return future.result()
