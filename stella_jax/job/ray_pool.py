"""The job, run by actors of a Ray cluster: parts are handed out in chunks, and again when an actor or its node dies."""

import os
import socket
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from stella_jax.errors import StellaError
from stella_jax.job.ray_cluster import Need, connected, default_need, environment, first_line, shown_need, slots

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)

LIMIT = 5  # deaths in a row that are no accident any more
POLL_SECONDS = 0.5
REFRESH_SECONDS = 5.0
LOGS = "/tmp/ray/session_latest/logs"  # on every node, unless its cluster was started with another --temp-dir


class Runs(Protocol[Result_co]):
    """What an actor makes once and keeps: a loaded model that does parts."""

    def run(self, parts: Sequence[int]) -> Result_co:
        """Embeds and commits these parts, some of them perhaps for a second time; returns what is small and pickles."""
        ...


def run_on_ray(
    factory: Callable[[], Runs[Result]],
    parts: Sequence[int],
    *,
    chunk: Callable[[int, int], int],
    report: Callable[[Result], None],
    stop: Callable[[], bool],
    need: Need | None = None,
    address: str | None = None,
    patience: float = 300.0,
    grace: float = 20.0,
    say: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr),
) -> None:
    """Has the parts done by actors, as many as the cluster holds at any time, each of which loads the model once.

    A chunk whose actor dies is done again, part by part, by others. Actors beyond what the cluster holds stand waiting:
    they are the demand that lets an autoscaler add nodes, and they start on a node as soon as it joins. Returns when
    all parts are done or, with parts left, after `stop` turned true; no actor outlives the call.

    Args:
      factory: makes an actor's worker, there; it is pickled, and the nodes have this package installed.
      chunk: from the number of parts not handed out and of actors at work, how many parts to hand out at once.
      report: is called with what `Runs.run` returned.
      need: of one actor; by default what `default_need` finds in the cluster as it is at the start.
      address: of a cluster, or "local" to start one for the job on this machine; by default RAY_ADDRESS, else one that
        runs on this machine, else as "local".
      patience: seconds without any actor placed until the job ends.
      grace: seconds that chunks at work have to finish in after `stop` turned true.
      say: is told of deaths and of waiting.

    Raises:
      StellaError: Ray is missing or the cluster cannot be reached, no actor finds room, an actor met an error of its
        own, or actors keep dying, over one part or before they are ready.
    """
    with connected(address) as ray:
        need = default_need(ray.nodes()) if need is None else need
        pool = _Pool(ray, factory, parts, chunk=chunk, report=report, need=need, say=say)
        try:
            pool.work(stop, patience)
            pool.drain(grace)
        finally:
            pool.kill()


@dataclass(frozen=True, slots=True)
class _Failure:
    """What an actor returns in place of a result where another attempt would end the same."""

    sentence: str


class _Actor:
    """What lives on a node. Each method is one step; errors come back as values, which Ray does not wrap."""

    def here(self) -> str:
        """The host; the answer comes as soon as the actor is placed."""
        return socket.gethostname()

    def load(self, factory: Callable[[], Runs[Any]], need: Need) -> _Failure | None:
        os.environ.update(environment(need))
        try:
            self.runs = factory()
        except Exception as error:
            return _failure("loading the model", error)

    def run(self, parts: Sequence[int]) -> Any:
        try:
            return self.runs.run(parts)
        except Exception as error:
            return _failure(_named(parts), error)

    def nap(self) -> None:
        """Nothing to do, and alive."""
        time.sleep(POLL_SECONDS)


@dataclass(eq=False, slots=True)
class _Worker:
    """The driver's side of an actor, of which one call is always under way."""

    actor: Any
    host: str = ""  # once it is placed
    ready: bool = False
    parts: tuple[int, ...] = ()  # that it is at work on

    def __str__(self) -> str:
        return f"a Ray worker on {self.host}" if self.host else "a Ray worker"


class _Pool(Generic[Result]):
    """The actors, and the parts that are not done."""

    def __init__(
        self,
        ray: Any,
        factory: Callable[[], Runs[Result]],
        parts: Sequence[int],
        *,
        chunk: Callable[[int, int], int],
        report: Callable[[Result], None],
        need: Need,
        say: Callable[[str], None],
    ):
        self._ray = ray
        self._factory = factory
        self._queue = deque(parts)
        self._chunk = chunk
        self._report = report
        self._need = need
        self._say = say
        self._workers: set[_Worker] = set()
        self._calls: dict[Any, _Worker] = {}
        self._deaths: Counter[int] = Counter()  # over a part, in a row
        self._stillborn = 0  # deaths before any actor was ready, in a row
        self._slots = 0
        self._slots_until = 0.0
        self._closed = False

    def work(self, stop: Callable[[], bool], patience: float) -> None:
        """Until no part is left or `stop` turns true."""
        placed = time.monotonic()
        while (self._queue or self._busy) and not stop():
            self._grow()
            self._step()
            if any(worker.host for worker in self._workers):
                placed = time.monotonic()
            elif time.monotonic() - placed > patience:
                raise StellaError(
                    f"no Ray worker found room in {patience:.0f} s: each takes {shown_need(self._need)}, and the nodes "
                    f"hold {self._slots} when empty; add nodes, end what else runs there (ray status), or ask for less."
                )

    def drain(self, grace: float) -> None:
        """Lets the chunks that are at work finish."""
        self._closed = True
        end = time.monotonic() + grace
        while self._busy and time.monotonic() < end:
            self._step()

    def kill(self) -> None:
        """Ends all actors."""
        for worker in self._workers:
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        with suppress(self._ray.exceptions.RayError):  # it may have ended by itself
            self._ray.kill(worker.actor)

    @property
    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.parts]

    def _grow(self) -> None:
        """Makes actors up to twice what the cluster holds, but no more than there are parts."""
        if time.monotonic() >= self._slots_until:
            before, self._slots = self._slots, slots(self._ray.nodes(), self._need)
            if not self._slots and (before or not self._workers):
                self._say(f"waiting for a Ray node with room for a worker, which takes {shown_need(self._need)}.")
            self._slots_until = time.monotonic() + REFRESH_SECONDS
        parts = len(self._queue) + sum(len(worker.parts) for worker in self._busy)
        for _ in range(min(parts, max(1, 2 * self._slots)) - len(self._workers)):
            worker = _Worker(self._ray.remote(_Actor).options(**self._need).remote())
            self._workers.add(worker)
            self._call(worker, worker.actor.here)

    def _call(self, worker: _Worker, method: Any, *args: Any) -> None:
        self._calls[method.remote(*args)] = worker

    def _step(self) -> None:
        """Waits for an answer, a moment at most, and gives whoever answered its next call."""
        done, _ = self._ray.wait(list(self._calls), timeout=POLL_SECONDS)
        for call in done:
            worker = self._calls.pop(call)
            try:
                answer = self._ray.get(call)
            except self._ray.exceptions.RayTaskError as error:
                # The actor returns its errors; this one is of what did not pickle, either way.
                raise StellaError(_sentence("a call", worker.host, error.cause or error)) from error
            except self._ray.exceptions.RayError as error:
                self._bury(worker, error)
            else:
                self._answered(worker, answer)

    def _answered(self, worker: _Worker, answer: Any) -> None:
        if isinstance(answer, _Failure):
            raise StellaError(answer.sentence)
        if not worker.host:
            worker.host = answer
            self._call(worker, worker.actor.load, self._factory, dict(self._need))
            return
        worker.ready, self._stillborn = True, 0
        if worker.parts:
            self._report(answer)
            for part in worker.parts:
                del self._deaths[part]
        worker.parts = self._take()
        if worker.parts:
            self._call(worker, worker.actor.run, worker.parts)
        else:
            self._call(worker, worker.actor.nap)

    def _take(self) -> tuple[int, ...]:
        """The next chunk; a part that an actor died over comes alone, so that no other is blamed for it."""
        if self._closed or not self._queue:
            return ()
        at_work = sum(1 for worker in self._workers if worker.host)
        size = 1 if self._deaths[self._queue[0]] else max(1, self._chunk(len(self._queue), at_work))
        return tuple(self._queue.popleft() for _ in range(min(size, len(self._queue))))

    def _bury(self, worker: _Worker, error: Exception) -> None:
        """Puts the parts of a dead actor in front of the queue; the next round makes another."""
        self._workers.remove(worker)
        self._end(worker)  # it may only be out of reach
        self._say(f"{worker} is lost: {_reason(error)}; what it had in hand goes to another.")
        self._stillborn += not worker.ready
        # Many start at once, and may be taken away at once.
        if self._stillborn >= max(LIMIT, self._slots):
            raise StellaError(
                f"{self._stillborn} Ray workers in a row died before they had loaded the model, the last "
                f"with: {_reason(error)}; see {LOGS} on its node, and whether its memory is enough."
            )
        self._queue.extendleft(reversed(worker.parts))
        self._deaths.update(worker.parts)
        if any(self._deaths[part] >= LIMIT for part in worker.parts):
            raise StellaError(
                f"{LIMIT} Ray workers in a row died over {_named(worker.parts)}, the last on {worker.host} "
                f"with: {_reason(error)}; see {LOGS} there, and whether its memory is enough."
            )


def _failure(doing: str, error: Exception) -> _Failure:
    if isinstance(error, StellaError):
        return _Failure(str(error))
    traceback.print_exception(error)  # into the log of the actor
    return _Failure(_sentence(doing, socket.gethostname(), error))


def _sentence(doing: str, host: str, error: BaseException) -> str:
    what = f"{type(error).__name__}: {first_line(str(error))}"
    return f"{doing} failed on the Ray node {host} with {what}; more is in {LOGS} there."


def _reason(error: Exception) -> str:
    """The sentence of Ray's many about a death that says what happened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = lines[-1] if type(error).__name__ == "ActorDiedError" else lines[0]
    return first_line(told.split(". ")[0])


def _named(parts: Sequence[int]) -> str:
    return f"part {parts[0]}" if len(parts) == 1 else f"parts {min(parts)} to {max(parts)}"
