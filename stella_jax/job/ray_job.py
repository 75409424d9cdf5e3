"""Runs a job on the actors of a Ray cluster; the driver loads no model and uses no accelerator."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

from stella_jax.graceful_shutdown import GracefulShutdown, Stopped
from stella_jax.job.close import close_job
from stella_jax.job.commits import Committed
from stella_jax.job.job import recorded_job, splits_of
from stella_jax.job.manifest import MANIFEST, finished_totals
from stella_jax.job.options import JobCommand, RunOptions
from stella_jax.job.progress import Counts, Progress, Summary
from stella_jax.job.ray_cluster import connected, default_resources
from stella_jax.job.ray_pool import WorkerPool
from stella_jax.job.rejected import check_totals
from stella_jax.job.run import explain_full_disk, start_job
from stella_jax.job.worker import Worker
from stella_jax.readers.inputs import open_inputs
from stella_jax.storage.store import open_store


class SplitRunner:
    """Embeds splits in an actor. The first actor starts the job, since only actors know the platform."""

    def __init__(self, command: JobCommand, max_rejected: float, grace: float):
        files = open_inputs(command.inputs, command.job.fields)
        model = command.model.load()
        store = open_store(command.out)
        with explain_full_disk(store):
            self._job = start_job(store, model, files, command.job)
        self._worker = Worker(model, self._job, max_rejected)
        self._progress, self._stop = Progress(store), GracefulShutdown(grace)

    @property
    def counts(self) -> Counts:
        return self._progress.counts

    def run(self, numbers: Iterator[int]) -> None:
        store, splits = self._job.store, self._job.splits
        missing = (
            (splits[number], done) for number in numbers if not (done := Committed(store).of(number)).is_finished
        )
        with explain_full_disk(store), suppress(Stopped):
            self._worker.run(missing, self._progress, self._stop)

    def stop(self) -> None:
        with suppress(Stopped):  # if it is idle
            self._stop.request()


def run_ray_job(command: JobCommand, run: RunOptions, address: str | None = None) -> Summary:
    """`run_job` on the Ray cluster at `address` (None: the current one, or a new one on this machine).

    Raises:
      StellaError: as `run_job`; or the cluster cannot be used.
      Stopped: a stop was requested; finished parts are kept.
    """
    command = command.absolute()
    store, stop = open_store(command.out), run.stop
    files = open_inputs(command.inputs, command.job.fields)

    def plan() -> Sequence[int]:
        job, committed = recorded_job(store), Committed(store)
        missing = [split for split in job.splits if not committed.is_finished(split.number)]
        total = sum(split.size for split in job.splits)
        if progress.phase == "loading":
            progress.start(total, total - sum(split.size for split in missing))
        return [split.number for split in missing]

    with (
        explain_full_disk(store),
        connected(address) as ray,
        Progress(store, show=run.show, task=command.job.task) as progress,
    ):
        while True:
            expected = 1 if store.size(MANIFEST) is not None else len(splits_of(files, command.job.split_bytes))
            resources = default_resources(ray.nodes())
            factory = partial(SplitRunner, command, run.max_rejected, stop.grace)
            pool = WorkerPool(ray, factory, resources, plan=plan, expected=expected, on_counts=progress.add)
            with stop.deferred():
                pool.run(lambda: stop.requested, stop.grace)
            job = recorded_job(store)
            if totals := finished_totals(job):
                check_totals(totals, (), run.max_rejected)
            progress.closing()
            if totals := totals or close_job(job, command.model.origin(), run.max_rejected):
                return progress.end(totals)
