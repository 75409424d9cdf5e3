"""Who runs which part, and who closes the job: this process alone, or the processes of many hosts."""

import time

from stella_jax.job.hosts import Hosts
from stella_jax.job.job import Job
from stella_jax.job.lookout import Lookout
from stella_jax.job.manifest import MANIFEST
from stella_jax.job.plan import Part
from stella_jax.job.progress import Progress
from stella_jax.job.stop import Stop
from stella_jax.job.worker import Worker

POLL_SECONDS = 1.0


def run_share(job: Job, worker: Worker, hosts: Hosts, progress: Progress, stop: Stop) -> bool:
    """Embeds this process's share of the parts, every `count`-th, and then what dead processes have left.

    Returns when no part is missing: whether it is for this process to close the job, which otherwise is closed.
    """
    mine = [part for part in job.missing() if part.number % hosts.count == hosts.index]
    share = job.plan.rows_of(range(hosts.index, len(job.parts), hosts.count))
    progress.begin(share, share - job.plan.rows_of([part.number for part in mine]))
    worker.run(mine, progress, stop)
    lookout = Lookout(job.store)
    while missing := job.missing():
        taken = lookout.taken(hosts.count, but=hosts.index)
        free = [part for part in missing if part.name not in taken]
        if free:
            piece = _piece(free, hosts)
            progress.more(job.plan.rows_of([part.number for part in piece]))
            worker.run(piece, progress, stop)
        else:
            _wait(progress)
    return _is_closer(job, lookout, hosts, progress)


def _is_closer(job: Job, lookout: Lookout, hosts: Hosts, progress: Progress) -> bool:
    """Waits for the manifest (False), or until no process before this one lives to write it.

    Where the lookout is wrong about one, both write the same bytes.
    """
    while not lookout.leads(hosts.index):
        if job.store.size(MANIFEST) is not None:
            return False
        _wait(progress)
    return True


def _wait(progress: Progress) -> None:
    progress.waiting()
    time.sleep(POLL_SECONDS)


def _piece(parts: list[Part], hosts: Hosts) -> list[Part]:
    """What to help with: each process another piece, and the first left to those whose parts they are.

    In ascending order: an input that cannot be leapt through is then read once.
    """
    start, stop = (place * len(parts) // (hosts.count + 1) for place in (hosts.index + 1, hosts.index + 2))
    return parts[start : max(stop, start + 1)]
