"""Who runs which part: this process alone, or the processes of many hosts."""

import time

from stella_jax.job.hosts import Hosts
from stella_jax.job.job import Job
from stella_jax.job.lookout import Lookout
from stella_jax.job.plan import Part
from stella_jax.job.progress import Progress
from stella_jax.job.stop import Stop
from stella_jax.job.worker import Worker

POLL_SECONDS = 1.0


def run_share(job: Job, worker: Worker, hosts: Hosts, progress: Progress, stop: Stop) -> None:
    """Embeds this process's share of the parts, every `count`-th, and then what dead processes have left.

    Returns when no part is missing.
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
            progress.more(job.plan.rows_of([part.number for part in free]))
            worker.run(_from_another_end(free, hosts), progress, stop)
        else:
            progress.waiting()
            time.sleep(POLL_SECONDS)


def _from_another_end(parts: list[Part], hosts: Hosts) -> list[Part]:
    """The parts in an order in which helpers meet late: backwards, each process from another place on."""
    start = hosts.index * len(parts) // hosts.count
    backwards = parts[::-1]
    return backwards[start:] + backwards[:start]
