"""Which splits a process takes: every `count`-th, then what others have not begun or left behind when they died."""

import time
from collections.abc import Iterator, Sequence
from random import Random

from stella_jax.job.commits import Committed, SplitCommits
from stella_jax.job.heartbeat import Others
from stella_jax.job.hosts import Hosts
from stella_jax.job.job import Job
from stella_jax.job.progress import Progress
from stella_jax.job.splits import Split
from stella_jax.job.stop import GracefulShutdown
from stella_jax.job.worker import Worker

POLL_SECONDS = 1.0


def embed_share(
    job: Job, worker: Worker, hosts: Hosts, others: Others, progress: Progress, stop: GracefulShutdown
) -> None:
    """Returns when every split of the job is embedded, by this process or by others."""
    while unfinished := _unfinished(job, Committed(job.store)):
        others.look()
        if hosts.count == 1:
            committed = Committed(job.store)
            worker.run(((split, committed.of(split.number)) for split in unfinished), progress, stop)
        elif free := [split for split in unfinished if not others.is_claimed(split.number)]:
            worker.run(_claimed(job, free, hosts, others, progress), progress, stop)
        else:
            wait(progress)


def share_of(job: Job, hosts: Hosts) -> list[Split]:
    return job.splits[hosts.index :: hosts.count]


def wait(progress: Progress) -> None:
    progress.waiting()
    time.sleep(POLL_SECONDS)


def _unfinished(job: Job, committed: Committed) -> list[Split]:
    return [split for split in job.splits if not committed.is_finished(split.number)]


def _claimed(
    job: Job, free: Sequence[Split], hosts: Hosts, others: Others, progress: Progress
) -> Iterator[tuple[Split, SplitCommits]]:
    """The splits that this process can claim, its own first; the others in an order of its own."""
    own = [split for split in free if split.number % hosts.count == hosts.index]
    rest = [split for split in free if split.number % hosts.count != hosts.index]
    Random(hosts.index).shuffle(rest)
    for split in [*own, *rest]:
        others.look()
        if others.is_claimed(split.number):
            continue
        done = Committed(job.store).of(split.number)
        if not done.is_finished and others.claim(split.number):
            if split.number % hosts.count != hosts.index:
                progress.add_work(split.size)
            yield split, done
