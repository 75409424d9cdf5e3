"""Scanners that take inputs one after the other: one in this process, or several in processes of their own.

Those are started with nothing of this process but its import path. multiprocessing would import the caller's main
module in each of them, JAX with it (and run it as a whole, where it is a script without a guard). They end with this
process, however it ends, since all they read from and write to is a socket whose other end only this process has.
"""

import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from subprocess import DEVNULL, Popen
from typing import Any, BinaryIO

from stella_jax.errors import StellaError
from stella_jax.job.duplicates import Duplicates
from stella_jax.job.hashing import TICK_SECONDS, Tick
from stella_jax.job.rows import Fields
from stella_jax.job.scanner import Scanner
from stella_jax.job.source import Source

CODE = "import sys; from stella_jax.job.crew import serve; serve(int(sys.argv[1]))"
TELL_SECONDS = 0.5
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

Task = tuple[Source, *tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Failed:
    """What stands in place of an answer."""

    error: Exception


class Crew(ABC):
    """Has the methods of Scanner called."""

    @abstractmethod
    def map(self, method: str, tasks: Sequence[Task]) -> list[Any]:
        """The answers to tasks (arguments of the method) in their order, up to and with the first that is Failed."""

    @abstractmethod
    def end(self) -> None:
        """Gives Duplicates the ids of all inputs."""

    def close(self) -> None:  # noqa: B027  most have nothing to do
        """Ends what is still at work."""

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class Alone(Crew):
    """A crew of this process."""

    def __init__(self, fields: Fields, part_rows: int, duplicates: Duplicates, tick: Tick):
        self._duplicates = duplicates
        self._file = duplicates.file()
        self._scanner = Scanner(fields, part_rows, self._file, tick)

    def map(self, method: str, tasks: Sequence[Task]) -> list[Any]:
        answers: list[Any] = []
        for task in tasks:
            answers.append(_answer(self._scanner, method, task))
            if isinstance(answers[-1], Failed):
                break
        return answers

    def end(self) -> None:
        self._duplicates.take(self._file, self._scanner.end())


class Processes(Crew):
    """A crew of so many processes, each of which is started once there is work for it.

    Raises:
      StellaError: (the methods) one of them was killed.
    """

    def __init__(self, count: int, fields: Fields, part_rows: int, duplicates: Duplicates, tick: Tick):
        self._count = count
        self._work = (fields, part_rows)
        self._duplicates = duplicates
        self._tick = tick
        self._members: list[_Member] = []
        self._late: set[_Member] = set()  # at work on what is not wanted any more

    def map(self, method: str, tasks: Sequence[Task]) -> list[Any]:
        end = len(tasks)  # of those that are wanted
        busy = dict.fromkeys(self._late, end)
        idle = [member for member in self._members if member not in busy]
        waiting = deque(range(end))
        answers: dict[int, Any] = {}
        while (waiting and waiting[0] < end) or any(number < end for number in busy.values()):
            while waiting and waiting[0] < end and (idle or len(self._members) < self._count):
                member, number = idle.pop() if idle else self._start(), waiting.popleft()
                member.ask(method, tasks[number])
                busy[member] = number
            for member, answer in self._answers(busy):
                idle.append(member)
                number = busy.pop(member)
                if number < end:
                    answers[number] = answer
                    end = number + 1 if isinstance(answer, Failed) else end
        self._late = set(busy)
        return [answers[number] for number in range(end)]

    def end(self) -> None:
        for member in self._members:
            member.ask("end", ())
        waiting = set(self._members)
        while waiting:
            for member, bounds in self._answers(waiting):
                self._duplicates.take(member.file, bounds)
                waiting.remove(member)

    def close(self) -> None:
        for member in self._members:
            member.kill()
        for member in self._members:
            member.close()

    def _start(self) -> "_Member":
        self._members.append(_Member(*self._work, self._duplicates.file()))
        return self._members[-1]

    def _answers(self, members: Iterable["_Member"]) -> list[tuple["_Member", Any]]:
        """Waits a moment for what these say; returns the answers among it."""
        ready = set(wait([member.socket for member in members], TICK_SECONDS))
        said = [(member, member.hear()) for member in members if member.socket in ready]
        self._tick(sum(what for _, what in said if isinstance(what, int)))
        return [(member, what[0]) for member, what in said if not isinstance(what, int)]


class _Member:
    """This process's side of another one; `file` is for its ids."""

    def __init__(self, fields: Fields, part_rows: int, file: BinaryIO):
        self.file = file
        self._reads = "the inputs"
        self.socket, theirs = Pipe()
        with theirs:
            self._process = Popen(
                [sys.executable, "-P", "-c", CODE, str(theirs.fileno())],
                stdin=DEVNULL,
                env=_environment(),
                pass_fds=(theirs.fileno(), file.fileno()),
                process_group=0,  # Ctrl-C is for this process, which then ends the others
            )
        self._send((fields, part_rows, file.fileno()))

    def ask(self, method: str, arguments: Task | tuple[()]) -> None:
        if arguments:
            self._reads = str(arguments[0].location)
        self._send((method, arguments))

    def hear(self) -> Any:
        """What it says: rows read, or an answer in a tuple."""
        try:
            return self.socket.recv()
        except (EOFError, OSError):
            raise self._dead() from None

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self.socket.close()
        self._process.wait()

    def _send(self, what: object) -> None:
        try:
            self.socket.send(what)
        except OSError:
            raise self._dead() from None

    def _dead(self) -> StellaError:
        code = self._process.wait()
        how = (
            f"was killed by signal {-code}, perhaps for want of memory" if code < 0 else f"ended with exit code {code}"
        )
        return StellaError(f"a process that read {self._reads} {how}; run the same command again.")


def _environment() -> dict[str, str]:
    """This one's, with the same modules; of all arithmetic libraries that start a thread for each core, none does."""
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return os.environ | {"PYTHONPATH": path} | dict.fromkeys(THREADS, "1")


def serve(socket: int) -> None:
    """A process of a crew, until the other end of its socket is closed."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError), Connection(socket) as parent:
        fields, part_rows, file = parent.recv()
        teller = _Teller(parent)
        with open(file, "wb") as ids:
            scanner = Scanner(fields, part_rows, ids, teller)
            while True:
                answer = _answer(scanner, *parent.recv())
                if isinstance(answer, Failed):
                    answer.error.add_note("".join(traceback.format_exception(answer.error)))  # would stay behind
                teller.tell()
                parent.send((answer,))


class _Teller:
    """Tells the parent how many rows were read, now and then."""

    def __init__(self, parent: Connection):
        self._parent = parent
        self._rows = 0
        self._told = time.monotonic()

    def __call__(self, rows: int) -> None:
        self._rows += rows
        if time.monotonic() - self._told > TELL_SECONDS:
            self.tell()

    def tell(self) -> None:
        self._parent.send(self._rows)
        self._rows, self._told = 0, time.monotonic()


def _answer(scanner: Scanner, method: str, arguments: tuple) -> Any:
    try:
        return getattr(scanner, method)(*arguments)
    except Exception as error:
        return Failed(error)
