"""A job from its beginning to its manifest."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.job.atomic import FULL
from stella_jax.job.executors import run_share
from stella_jax.job.hosts import Hosts
from stella_jax.job.job import join_job, open_job
from stella_jax.job.manifest import close_job
from stella_jax.job.progress import Progress, Summary
from stella_jax.job.receipts import FOLDER
from stella_jax.job.settings import Settings, fingerprint_of
from stella_jax.job.stop import Stop
from stella_jax.job.store import Store, open_store
from stella_jax.job.worker import Worker

MAX_REJECTED = 0.01
GRACE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Running:
    """How a job is run; nothing of it changes what is written.

    Attributes:
      max_rejected: share of the rows that may be rejected.
      hosts: which process of how many this is.
      stop: how it is asked to end early.
      shown: bars on stderr.
    """

    max_rejected: float = MAX_REJECTED
    hosts: Hosts = field(default_factory=Hosts)
    stop: Stop = field(default_factory=lambda: Stop(GRACE_SECONDS))
    shown: bool = False


def run_job(
    model: Stella,
    origin: dict[str, Any],
    inputs: Sequence[str | Path],
    out: str | Path,
    settings: Settings,
    running: Running | None = None,
) -> Summary:
    """Embeds the inputs into `out`, or finishes what earlier runs of the same job left there.

    Args:
      origin: where the model came from ("model", "revision"), for the manifest.

    Raises:
      StellaError: an input or `out` cannot be used, too many rows are rejected, or the disk is full; finished parts are
        kept.
      Stopped: it was asked to stop; finished parts are kept.
    """
    running = running or Running()
    store, hosts = open_store(out), running.hosts
    with full_disk_told(store), _seen(store, hosts, running.shown and not hosts.index) as progress:
        with progress.loading():
            fingerprint = fingerprint_of(model, settings)
        if hosts.index:
            job = join_job(store, inputs, settings, fingerprint, progress)
        else:
            job = open_job(store, inputs, settings, fingerprint, running.max_rejected, progress)
        progress.journal()
        closes = run_share(job, Worker(model, job, running.max_rejected), hosts, progress, running.stop)
        return progress.end(close_job(job, origin, running.max_rejected) if closes else None)


@contextmanager
def loading(out: str | Path, hosts: Hosts) -> Iterator[None]:
    """A block that loads the model: the job's other processes, which wait for this one, see that it lives."""
    with _seen(open_store(out), hosts) as progress, progress.loading():
        yield


def _seen(store: Store, hosts: Hosts, shown: bool = False) -> Progress:
    """Progress that the other processes see from now on, where there are any."""
    progress = Progress(store, hosts.index, shown)
    if hosts.count > 1:
        store.prepare()
        progress.journal()
    return progress


@contextmanager
def full_disk_told(store: Store) -> Iterator[None]:
    """Turns a full disk into a sentence; whatever was being written is gone already."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        kept = f"parts finished and kept: {len(store.sizes(FOLDER))}"
        raise StellaError(f"the disk of {store} is full; {kept}. Make room and run the same command again.") from error
