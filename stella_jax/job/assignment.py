"""Which splits a process takes: every `count`-th, then what others have not begun or left behind when they died."""

import time
from collections.abc import Iterator, Sequence
from random import Random

from stella_jax.graceful_shutdown import GracefulShutdown
from stella_jax.job.commits import FOLDER, Committed, PartName, SplitCommits
from stella_jax.job.heartbeat import Others
from stella_jax.job.hosts import Hosts
from stella_jax.job.job import Job
from stella_jax.job.manifest import MANIFEST
from stella_jax.job.progress import Progress
from stella_jax.job.worker import Worker
from stella_jax.readers.splits import Split

POLL_SECONDS = 1.0


def embed_share(
    job: Job, worker: Worker, hosts: Hosts, others: Others, progress: Progress, stop: GracefulShutdown
) -> None:
    """Returns when every split of the job is embedded, by this process or by others."""
    while unfinished := _unfinished(job, committed := Committed(job.store)):
        if hosts.count == 1:
            worker.run(((split, committed.of(split.number)) for split in unfinished), progress, stop)
            continue
        others.look()
        if free := [split for split in unfinished if not others.is_claimed(split.number)]:
            splits = _claimed(job, free, committed, hosts, others, progress)
            worker.run(splits, progress, stop, on_finished=lambda split: others.release(split.number))
        else:
            _wait_for_change(job, unfinished, others, progress)


def share_of(job: Job, hosts: Hosts) -> list[Split]:
    return job.splits[hosts.index :: hosts.count]


def wait(progress: Progress) -> None:
    progress.waiting()
    time.sleep(POLL_SECONDS)


def _wait_for_change(job: Job, unfinished: Sequence[Split], others: Others, progress: Progress) -> None:
    """Waits while others are at work on all of these, by two requests a round."""
    while all(others.is_claimed(split.number) for split in unfinished) and job.store.size(MANIFEST) is None:
        wait(progress)
        others.look()


def _unfinished(job: Job, committed: Committed) -> list[Split]:
    return [split for split in job.splits if not committed.is_finished(split.number)]


def _claimed(
    job: Job, free: Sequence[Split], committed: Committed, hosts: Hosts, others: Others, progress: Progress
) -> Iterator[tuple[Split, SplitCommits]]:
    """The splits that this process can claim, its own first; the others in an order of its own."""
    own = [split for split in free if split.number % hosts.count == hosts.index]
    rest = [split for split in free if split.number % hosts.count != hosts.index]
    Random(hosts.index).shuffle(rest)
    for split in [*own, *rest]:
        others.look()
        if others.is_claimed(split.number):
            continue
        done = _commits_of(job, split, committed)
        if not done.is_finished and others.claim(split.number):
            if split.number % hosts.count != hosts.index:
                progress.add_work(split.size)
            yield split, done


def _commits_of(job: Job, split: Split, before: Committed) -> SplitCommits:
    """The commits of a split as they are now; all are listed only if there are any."""
    first = PartName(split.number, 0)
    names = [f"{FOLDER}/{first}.json", f"{FOLDER}/{first}.last.json"]
    if before.of(split.number).numbers or any(job.store.size(name) is not None for name in names):
        return Committed(job.store).of(split.number)
    return SplitCommits()
