"""Runs a job from start to manifest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.assignment import Assignment, own_splits
from stella_jax.job.close import close_job
from stella_jax.job.commits import Committed
from stella_jax.job.heartbeat import HEARTBEATS_FOLDER, Heartbeat
from stella_jax.job.job import JOB, Job
from stella_jax.job.manifest import MANIFEST, finished_totals
from stella_jax.job.open_job import open_job, require_own_files
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.processes import Processes
from stella_jax.job.progress import Progress, Summary
from stella_jax.job.range_sample import make_ranges
from stella_jax.job.rejected import check_totals
from stella_jax.job.worker import Worker
from stella_jax.pretrained import PretrainedModel
from stella_jax.readers.inputs import InputFile, open_inputs
from stella_jax.readers.kept_columns import resolve_types
from stella_jax.storage.atomic import FULL
from stella_jax.storage.location import locate
from stella_jax.storage.store import Store, open_store


def run_job(
    model: PretrainedModel,
    origin: dict[str, Any],
    inputs: Sequence[str | Path],
    out: str | Path,
    options: JobOptions,
    run: RunOptions | None = None,
) -> Summary:
    """Embeds or scores the inputs into `out`, or finishes what an earlier run of the same job started there.

    With several processes, call it inside `heartbeat`.

    Args:
      origin: where the model came from ("model", "revision"), for the manifest.

    Raises:
      StellaError: an input or `out` cannot be used, too many rows are rejected, or the disk is full; finished parts are
        kept.
      Stopped: a stop was requested; finished parts are kept.
    """
    return run_files(model, origin, open_inputs(inputs, options.fields), out, options, run or RunOptions())


def run_files(
    model: PretrainedModel,
    origin: dict[str, Any],
    files: Sequence[InputFile],
    out: str | Path,
    options: JobOptions,
    run: RunOptions,
) -> Summary:
    """`run_job` with inputs that are open already: opening them before the model finds a wrong path at once."""
    store = open_store(out)
    with explain_full_disk(store), Progress(store, run.processes.index, run.show, options.task) as progress:
        job = start_job(store, model, files, options)
        return progress.end(_finish(model, job, origin, run, progress))


def start_job(store: Store, model: PretrainedModel, files: Sequence[InputFile], options: JobOptions) -> Job:
    """The job with these inputs, new or resumed; raises as `open_job` does, or if an input is in the output."""
    folder = f"{locate(str(store)).full}/"
    if inside := [file for file in files if file.location.full.startswith(folder)]:
        raise StellaError(f"{inside[0].location}: inside the output directory {store}; use another --out.")
    options = replace(options, fields=resolve_types([file.location for file in files], options.fields))
    return open_job(store, options, options.fingerprint(model), files, partial(make_ranges, model, options.ranges))


def _finish(
    model: PretrainedModel, job: Job, origin: dict[str, Any], run: RunOptions, progress: Progress
) -> dict[str, int] | None:
    """The totals, None if another process closes the job."""
    splits, committed = own_splits(job, run.processes), Committed(job.store)
    done = sum(split.size for split in splits if committed.is_finished(split.number))
    progress.start(sum(split.size for split in splits), done)
    if totals := finished_totals(job):
        check_totals(totals, (), run.max_rejected)
        return totals
    job.store.remove(MANIFEST)  # of an earlier run, some of whose parts are gone
    worker, assignment = Worker(model, job, run.max_rejected), Assignment(job, run.processes, progress)
    while True:
        assignment.embed_splits(worker, run.stop)
        if not assignment.is_closer():
            return None
        progress.closing()
        if totals := close_job(job, origin, run.max_rejected):
            return totals


@contextmanager
def heartbeat(store: Store, processes: Processes) -> Iterator[None]:
    """A block in which the job's other processes see that this one is alive.

    Raises:
      StellaError: the directory is not the output of a job.
    """
    if processes.count == 1:
        yield
        return
    if store.size(JOB) is None and not Committed(store).files:
        require_own_files(store)
    store.prepare(HEARTBEATS_FOLDER)
    with Heartbeat(store, processes.index):
        yield


@contextmanager
def explain_full_disk(store: Store) -> Iterator[None]:
    """A block in which a full disk becomes a StellaError; temporary files are removed already."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        parts = len(Committed(store).files)
        raise StellaError(
            f"{store}: disk full, {parts} finished parts are kept; free some space and run the same command again."
        ) from error
