"""Numbers done by actors of a Ray cluster; Ray starts an actor again that died, elsewhere if need be, and its call."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from typing import Any, Protocol

from stella_jax.errors import StellaError
from stella_jax.job.progress import Counts
from stella_jax.job.ray_cluster import Need, environment, first_line, shown_need, slots

RESTARTS = 4  # of an actor, and rounds in which nothing is finished: more is no accident
POLL_SECONDS = 0.5
REFRESH_SECONDS = 5.0
PLACEMENT_SECONDS = 300.0
LOGS = "/tmp/ray/session_latest/logs"  # on every node, unless its cluster was started with another --temp-dir


class Runner(Protocol):
    """What an actor makes once and keeps, as it holds a loaded model; `counts` is of all that it did so far."""

    @property
    def counts(self) -> Counts: ...

    def run(self, numbers: Iterator[int]) -> None: ...

    def stop(self) -> None:
        """Makes `run` finish what is open and return; called beside it."""


class Actor:
    """What lives on a node. Numbers come from a queue one at a time, so that batches cross them."""

    def __init__(self, numbers: Any, reports: Any, factory: Callable[[], Runner], need: Need):
        import ray

        os.environ.update(environment(need))
        self._numbers, self._reports, self._factory = numbers, reports, factory
        self._runner: Runner | None = None
        self._reported = Counts()
        reports.put(socket.gethostname() if ray.get_runtime_context().was_current_actor_reconstructed else None)

    def load(self) -> None:
        with _explained():
            self._runner = self._runner or self._factory()

    def work(self) -> None:
        """Does numbers until there are none; Ray calls it again in a new process if this one dies."""
        self.load()
        assert self._runner
        with _explained():
            self._runner.run(iter(self._next, None))
        self._report()

    def stop(self) -> None:
        if self._runner:
            self._runner.stop()

    def _next(self) -> int | None:
        from ray.util.queue import Empty

        self._report()
        try:
            return self._numbers.get_nowait()
        except Empty:
            return None

    def _report(self) -> None:
        now = self._runner.counts if self._runner else Counts()
        self._reports.put(now - self._reported)
        self._reported = now


@contextmanager
def _explained() -> Iterator[None]:
    """Turns an actor's errors into sentences, which pickle."""
    try:
        yield
    except StellaError:
        raise
    except Exception as error:
        traceback.print_exc()  # into the log of the actor
        what = f"{type(error).__name__}: {first_line(str(error))}"
        where = f"a Ray worker failed on the node {socket.gethostname()} with"
        raise StellaError(f"{where} {what}; more is in {LOGS} there.") from None


class Pool:
    """Actors, as many as the cluster holds at any time, each of which loads the model once.

    Twice as many are asked for: those without room are the demand that lets an autoscaler add nodes, and they start on
    a node as soon as it joins. One that finds nothing more to do ends, and leaves its room to one that died and waits.
    What the dead had in hand is done in another round, when all others have ended.

    Args:
      ray: connected.
      factory: makes an actor's runner, there; it is pickled, and the nodes have this package installed.
      need: of one actor.
      plan: returns the numbers to do; called when an actor has loaded, and whenever nobody is at work.
      expected: how many these will be.
      report: is called with what was done since.
      say: is told of deaths and of waiting.
    """

    def __init__(
        self,
        ray: Any,
        factory: Callable[[], Runner],
        need: Need,
        *,
        plan: Callable[[], Sequence[int]],
        expected: int,
        report: Callable[[Counts], None],
        say: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr),
    ):
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here}
        self._numbers, self._reports = Queue(actor_options=options), Queue(actor_options=options)
        self._ray, self._factory, self._need = ray, factory, need
        self._plan, self._report, self._say = plan, report, say
        self._loading: dict[Any, Any] = {}  # actors by the call that is under way
        self._working: dict[Any, Any] = {}
        self._wanted, self._is_planned = max(1, expected), False
        self._parts = self._futile = 0
        self._slots, self._slots_until, self._placed, self._is_placed = -1, 0.0, time.monotonic(), False

    def run(self, stop: Callable[[], bool], grace: float) -> None:
        """Returns when all is done or, at most some seconds of grace after `stop` turned true, with numbers left.

        No actor outlives the call.

        Raises:
          StellaError: no actor finds room, one met an error of its own, or they die time and again.
        """
        end = inf
        try:
            while time.monotonic() < end and (self._wanted or self._working):
                if not stop():
                    self._grow()
                elif end == inf:
                    end, self._wanted, self._plan = time.monotonic() + grace, 0, tuple  # there is no further round
                    for actor in self._working.values():
                        actor.stop.remote()
                self._step()
        finally:
            for actor in [*self._loading.values(), *self._working.values()]:
                self._end(actor)
            for queue in (self._numbers, self._reports):
                queue.shutdown(force=True)

    def _grow(self) -> None:
        if time.monotonic() >= self._slots_until:
            before, self._slots = self._slots, slots(self._ray.nodes(), self._need)
            self._slots_until = time.monotonic() + REFRESH_SECONDS
            if not self._slots and before:
                self._say(f"waiting for a Ray node with room for a worker, which takes {shown_need(self._need)}.")
        options = {"max_restarts": RESTARTS, "max_task_retries": -1, "max_concurrency": 2, **self._need}
        for _ in range(min(self._wanted, 2 * self._slots or 1) - len(self._loading) - len(self._working)):
            kind = self._ray.remote(Actor).options(**options)
            actor = kind.remote(self._numbers, self._reports, self._factory, dict(self._need))
            self._loading[actor.load.remote()] = actor

    def _step(self) -> None:
        """Takes in what the actors have to say, a moment at most."""
        calls = [*self._loading, *self._working]
        done = self._ray.wait(calls, timeout=POLL_SECONDS)[0] if calls else []
        for report in self._reports.get_nowait_batch(self._reports.qsize()):
            self._is_placed = True
            if isinstance(report, Counts):
                self._parts += report.parts
                self._report(report)
            elif report:
                self._say(f"a Ray worker was lost; it starts again on {report}.")
        for call in done:
            self._on_end(call)
        if not self._wanted:
            for call in [*self._loading]:
                self._end(self._loading.pop(call))
        if self._is_placed and self._slots:
            self._placed = time.monotonic()
        elif time.monotonic() - self._placed > PLACEMENT_SECONDS:
            raise StellaError(
                f"no Ray worker found room in {PLACEMENT_SECONDS:.0f} s: each takes {shown_need(self._need)}, and the "
                f"nodes hold {self._slots} when empty; add nodes, end what else runs there (ray status), or ask for "
                "less."
            )

    def _on_end(self, call: Any) -> None:
        """An actor has loaded the model, has nothing more to do, or is dead and Ray has given it up."""
        was_working = call in self._working
        actor = (self._working if was_working else self._loading).pop(call)
        try:
            self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            self._end(actor)
            raise StellaError(str(error.cause)) from error
        except self._ray.exceptions.RayError as error:
            if not was_working:
                raise _deaths(RESTARTS + 1, "before they had loaded the model", _reason(error)) from error
            self._say(f"a Ray worker is lost: {_reason(error)}; what it had in hand goes to another.")
            actor = None
        if was_working and actor:
            self._wanted = 0  # it found the queue empty
        if not self._working and not (self._is_planned and not was_working):
            self._begin_round()
        if actor and self._wanted:
            self._working[actor.work.remote()] = actor
        elif actor:
            self._end(actor)

    def _begin_round(self) -> None:
        """Puts into the queue what is not done, while nobody is at work."""
        numbers = self._plan()
        self._futile = 0 if self._parts else self._futile + 1
        if numbers and self._futile > RESTARTS + 1:
            raise _deaths(RESTARTS + 1, f"over {len(numbers)} splits of the inputs", "its worker process has died")
        self._is_planned, self._wanted, self._parts = True, len(numbers), 0
        self._numbers.get_nowait_batch(self._numbers.qsize())
        self._numbers.put_nowait_batch(numbers)

    def _end(self, actor: Any) -> None:
        with suppress(self._ray.exceptions.RayError):  # it may have ended by itself
            self._ray.kill(actor)


def _deaths(count: int, where: str, reason: str) -> StellaError:
    return StellaError(
        f"{count} Ray workers in a row died {where}, the last with: {reason}; see {LOGS} on its node, and whether its "
        "memory is enough."
    )


def _reason(error: Exception) -> str:
    """The sentence of Ray's many about a death that says what happened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = lines[-1] if type(error).__name__ == "ActorDiedError" else lines[0]
    return first_line(told.split(". ")[0])
