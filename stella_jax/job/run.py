"""A job from its beginning to its manifest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.assignment import embed_share, share_of, wait
from stella_jax.job.close import check_totals, close_job
from stella_jax.job.commits import Committed
from stella_jax.job.heartbeat import FOLDER, Heartbeat, Others
from stella_jax.job.hosts import Hosts
from stella_jax.job.job import JOB, Job, open_job, require_own_files
from stella_jax.job.kept import resolve_types
from stella_jax.job.manifest import MANIFEST, finished_totals
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.progress import Progress, Summary
from stella_jax.job.range_sample import make_ranges
from stella_jax.job.worker import Worker
from stella_jax.pretrained import PretrainedModel
from stella_jax.readers.inputs import open_inputs
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
    """Embeds or scores the inputs into `out`, or finishes what earlier runs of the same job left there.

    With several processes it is called inside `heartbeat`.

    Args:
      origin: where the model came from ("model", "revision"), for the manifest.

    Raises:
      StellaError: an input or `out` cannot be used, too many rows are rejected, or the disk is full; finished parts are
        kept.
      Stopped: it was asked to stop; finished parts are kept.
    """
    run = run or RunOptions()
    store = open_store(out)
    with explain_full_disk(store), Progress(store, run.hosts.index, run.show, options.verb) as progress:
        job = start_job(store, model, inputs, options)
        return progress.end(_finish(model, job, origin, run, progress))


def start_job(store: Store, model: PretrainedModel, inputs: Sequence[str | Path], options: JobOptions) -> Job:
    """The job of these inputs, new or as it was left; raises as `open_job` and `open_inputs` do."""
    files = open_inputs(inputs, options.fields)
    folder = f"{locate(str(store)).full}/"
    if inside := [file for file in files if file.location.full.startswith(folder)]:
        raise StellaError(f"{inside[0].location} lies in the output directory {store}; use another --out.")
    options = replace(options, fields=resolve_types([file.location for file in files], options.fields))
    return open_job(store, options, options.fingerprint(model), files, partial(make_ranges, model, options.ranges))


def _finish(
    model: PretrainedModel, job: Job, origin: dict[str, Any], run: RunOptions, progress: Progress
) -> dict[str, int] | None:
    """The totals, None where another process closes the job."""
    share, committed = share_of(job, run.hosts), Committed(job.store)
    done = sum(split.size for split in share if committed.is_finished(split.number))
    progress.begin(sum(split.size for split in share), done)
    if totals := finished_totals(job):
        check_totals(totals, (), run.max_rejected)
        return totals
    job.store.remove(MANIFEST)  # of an earlier run, parts of which have gone
    worker, others = Worker(model, job, run.max_rejected), Others(job.store, run.hosts.index)
    while True:
        embed_share(job, worker, run.hosts, others, progress, run.stop)
        if not _is_closer(job, run.hosts, others, progress):
            return None
        progress.closing()
        if totals := close_job(job, origin, run.max_rejected):
            return totals


def _is_closer(job: Job, hosts: Hosts, others: Others, progress: Progress) -> bool:
    """Waits for the manifest (False), or until no living process of a lower number is left to write it.

    Where two take themselves for that process, both write the same bytes.
    """
    while hosts.count > 1:
        others.look()
        if job.store.size(MANIFEST) is not None:
            return False
        if others.is_leader():
            return True
        wait(progress)
    return True


@contextmanager
def heartbeat(store: Store, hosts: Hosts) -> Iterator[None]:
    """A block in which the job's other processes see that this one is alive.

    Raises:
      StellaError: the directory is not a job's.
    """
    if hosts.count == 1:
        yield
        return
    if store.size(JOB) is None and not Committed(store).files:
        require_own_files(store)
    store.prepare(FOLDER)
    with Heartbeat(store, hosts.index):
        yield


@contextmanager
def explain_full_disk(store: Store) -> Iterator[None]:
    """Turns a full disk into a sentence; whatever was being written is gone already."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        kept = f"parts finished and kept: {len(Committed(store).files)}"
        raise StellaError(f"the disk of {store} is full; {kept}. Make room and run the same command again.") from error
