"""A pool of Ray actors that work on numbered tasks; Ray restarts an actor that died, and its call."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from typing import Any, Protocol

from stella_jax.errors import StellaError, first_line
from stella_jax.job.progress import Counts
from stella_jax.job.ray_cluster import Resources, environment, format_resources, slots

RESTARTS = 4  # of an actor; also the number of rounds without progress
POLL_SECONDS = 0.5
REFRESH_SECONDS = 5.0
PLACEMENT_SECONDS = 300.0
LOGS = "/tmp/ray/session_latest/logs"  # on every node, unless the cluster was started with another --temp-dir


class TaskRunner(Protocol):
    """Made once by each actor, since it holds a loaded model; `counts` is the work so far."""

    @property
    def counts(self) -> Counts: ...

    def run(self, numbers: Iterator[int]) -> None: ...

    def stop(self) -> None:
        """Makes `run` finish its open work and return; called from another thread."""


class Actor:
    """Runs on a node. It takes task numbers from a queue one at a time, so that a batch can hold rows of several."""

    def __init__(self, numbers: Any, reports: Any, factory: Callable[[], TaskRunner], resources: Resources):
        import ray

        os.environ.update(environment(resources))
        self._numbers, self._reports, self._factory = numbers, reports, factory
        self._runner: TaskRunner | None = None
        self._reported = Counts()
        reports.put(socket.gethostname() if ray.get_runtime_context().was_current_actor_reconstructed else None)

    def load(self) -> None:
        with _explained():
            self._runner = self._runner or self._factory()

    def work(self) -> None:
        """Works until the queue is empty; if this process dies, Ray calls it again in a new one."""
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
    """A block in which other errors become StellaErrors, which can be pickled."""
    try:
        yield
    except StellaError:
        raise
    except Exception as error:
        traceback.print_exc()  # into the actor's log
        what = f"{type(error).__name__}: {first_line(error)}"
        raise StellaError(
            f"a Ray worker on node {socket.gethostname()}: failed with {what}; see {LOGS} on that node."
        ) from None


class WorkerPool:
    """As many actors as fit on the cluster at any time, each of which loads the model once.

    Twice as many are requested: pending actors are the demand that makes an autoscaler add nodes, and start as soon as
    a node joins. An actor that finds the queue empty ends, which makes room for a pending one. The work that dead
    actors had taken is done in another round, once all others have ended.

    Args:
      ray: connected.
      factory: makes an actor's runner, on its node; it is pickled, and the nodes have this package installed.
      resources: of one actor.
      plan: returns the task numbers; called when the first actor has loaded, and at the end of each round.
      expected: how many tasks there will be.
      on_counts: called with the work done since the last call.
      log: called with sentences about deaths and waiting.
    """

    def __init__(
        self,
        ray: Any,
        factory: Callable[[], TaskRunner],
        resources: Resources,
        *,
        plan: Callable[[], Sequence[int]],
        expected: int,
        on_counts: Callable[[Counts], None],
        log: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr),
    ):
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here}
        self._numbers, self._reports = Queue(actor_options=options), Queue(actor_options=options)
        self._ray, self._factory, self._resources = ray, factory, resources
        self._plan, self._on_counts, self._log = plan, on_counts, log
        self._loading: dict[Any, Any] = {}  # actors by their running call
        self._working: dict[Any, Any] = {}
        self._wanted, self._is_planned, self._is_stopping = max(1, expected), False, False
        self._parts = self._rounds_without_progress = 0
        self._slots, self._slots_until, self._placed, self._is_placed = -1, 0.0, time.monotonic(), False

    def run(self, stop: Callable[[], bool], grace: float) -> None:
        """Returns when all is done, or at most `grace` seconds after `stop` returned true.

        All actors have ended then.

        Raises:
          StellaError: no actor can be placed, one failed with an error, or actors die repeatedly.
        """
        end = inf
        try:
            while time.monotonic() < end and (self._wanted or self._working):
                if not stop():
                    self._scale_up()
                elif end == inf:
                    end, self._wanted, self._is_stopping = time.monotonic() + grace, 0, True
                    for actor in self._working.values():
                        actor.stop.remote()
                self._poll()
        finally:
            for actor in [*self._loading.values(), *self._working.values()]:
                self._end(actor)
            for queue in (self._numbers, self._reports):
                queue.shutdown(force=True)

    def _scale_up(self) -> None:
        if time.monotonic() >= self._slots_until:
            before, self._slots = self._slots, slots(self._ray.nodes(), self._resources)
            self._slots_until = time.monotonic() + REFRESH_SECONDS
            if not self._slots and before:
                self._log(
                    f"waiting for a Ray node with room for a worker, which needs {format_resources(self._resources)}."
                )
        options = {"max_restarts": RESTARTS, "max_task_retries": -1, "max_concurrency": 2, **self._resources}
        for _ in range(min(self._wanted, 2 * self._slots or 1) - len(self._loading) - len(self._working)):
            kind = self._ray.remote(Actor).options(**options)
            actor = kind.remote(self._numbers, self._reports, self._factory, dict(self._resources))
            self._loading[actor.load.remote()] = actor

    def _poll(self) -> None:
        """Handles what the actors report, and waits briefly if there is nothing."""
        calls = [*self._loading, *self._working]
        done = self._ray.wait(calls, timeout=POLL_SECONDS)[0] if calls else []
        for report in self._reports.get_nowait_batch(self._reports.qsize()):
            self._is_placed = True
            if isinstance(report, Counts):
                self._parts += report.parts
                self._on_counts(report)
            elif report:
                self._log(f"a Ray worker was lost; it restarts on {report}.")
        for call in done:
            self._on_call_end(call)
        if not self._wanted:
            for call in [*self._loading]:
                self._end(self._loading.pop(call))
        if self._is_placed and self._slots:
            self._placed = time.monotonic()
        elif time.monotonic() - self._placed > PLACEMENT_SECONDS:
            raise StellaError(
                f"the Ray cluster: no room for a worker in {PLACEMENT_SECONDS:.0f} s; each needs "
                f"{format_resources(self._resources)}, and {self._slots} fit on empty nodes; add nodes, or end other "
                "work there (see ray status)."
            )

    def _on_call_end(self, call: Any) -> None:
        """Handles an actor that has loaded the model, is out of work, or is dead beyond all restarts."""
        was_working = call in self._working
        actor = (self._working if was_working else self._loading).pop(call)
        try:
            self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            self._end(actor)
            raise StellaError(str(error.cause)) from error
        except self._ray.exceptions.RayError as error:
            if not was_working:
                raise _deaths(RESTARTS + 1, "while loading the model", _reason(error)) from error
            self._log(f"a Ray worker was lost ({_reason(error)}); another one takes over its work.")
            actor = None
        if was_working and actor:
            self._wanted = 0  # it found the queue empty
        needs_round = not self._working and (was_working or not self._is_planned)
        if needs_round and not self._is_stopping:
            self._start_round()
        if actor and self._wanted:
            self._working[actor.work.remote()] = actor
        elif actor:
            self._end(actor)

    def _start_round(self) -> None:
        """Puts all unfinished tasks into the queue, while no actor works."""
        numbers = self._plan()
        self._rounds_without_progress = 0 if self._parts else self._rounds_without_progress + 1
        if numbers and self._rounds_without_progress > RESTARTS + 1:
            raise _deaths(RESTARTS + 1, f"on {len(numbers)} splits of the inputs", "its worker process has died")
        self._is_planned, self._wanted, self._parts = True, len(numbers), 0
        self._numbers.get_nowait_batch(self._numbers.qsize())
        self._numbers.put_nowait_batch(numbers)

    def _end(self, actor: Any) -> None:
        with suppress(self._ray.exceptions.RayError):  # it may have ended already
            self._ray.kill(actor)


def _deaths(count: int, where: str, reason: str) -> StellaError:
    return StellaError(
        f"the Ray cluster: {count} workers in a row died {where}, the last with: {reason}; see {LOGS} on its node, and "
        "check its memory."
    )


def _reason(error: Exception) -> str:
    """The sentence in Ray's message that gives the cause of a death."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    cause = lines[-1] if type(error).__name__ == "ActorDiedError" else lines[0]
    return cause.split(". ")[0].strip().rstrip(".")
