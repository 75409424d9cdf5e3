"""Which splits a process takes: every `count`-th, then splits that others have not started or left when they died."""

import time
from collections.abc import Iterator, Sequence
from random import Random

from stella_jax.graceful_shutdown import GracefulShutdown
from stella_jax.job.commits import COMMITS_FOLDER, Committed, PartName, SplitCommits
from stella_jax.job.heartbeat import OtherProcesses
from stella_jax.job.job import Job
from stella_jax.job.manifest import MANIFEST
from stella_jax.job.processes import Processes
from stella_jax.job.progress import Progress
from stella_jax.job.worker import Worker
from stella_jax.readers.splits import Split

POLL_SECONDS = 1.0


def own_splits(job: Job, processes: Processes) -> list[Split]:
    """The splits that this process takes first."""
    return [split for split in job.splits if processes.owns(split)]


def wait(progress: Progress) -> None:
    progress.waiting()
    time.sleep(POLL_SECONDS)


class Assignment:
    """Assigns the splits of a job to this process."""

    def __init__(self, job: Job, processes: Processes, progress: Progress):
        self._job, self._processes, self._progress = job, processes, progress
        self._others = OtherProcesses(job.store, processes.index)

    def embed_splits(self, worker: Worker, stop: GracefulShutdown) -> None:
        """Embeds splits until all of the job are done, by this process or by others; raises as `Worker.run` does."""
        others = self._others
        while unfinished := self._unfinished(committed := Committed(self._job.store)):
            if self._processes.count == 1:
                worker.run(((split, committed.of(split.number)) for split in unfinished), self._progress, stop)
                continue
            others.refresh()
            if free := [split for split in unfinished if not others.is_claimed(split.number)]:
                splits = self._claimed(free, committed)
                worker.run(splits, self._progress, stop, on_finished=lambda split: others.release(split.number))
            else:
                self._wait_for_change(unfinished)

    def is_closer(self) -> bool:
        """Waits until another process has written the manifest (False), or none with a lower number is alive (True).

        If two processes conclude that they should write it, both write the same bytes.
        """
        while self._processes.count > 1:
            self._others.refresh()
            if self._job.store.size(MANIFEST) is not None:
                return False
            if self._others.is_leader():
                return True
            wait(self._progress)
        return True

    def _unfinished(self, committed: Committed) -> list[Split]:
        return [split for split in self._job.splits if not committed.is_finished(split.number)]

    def _wait_for_change(self, unfinished: Sequence[Split]) -> None:
        """Waits while others work on all of these, with two requests per round."""
        others, store = self._others, self._job.store
        while all(others.is_claimed(split.number) for split in unfinished) and store.size(MANIFEST) is None:
            wait(self._progress)
            others.refresh()

    def _claimed(self, free: Sequence[Split], committed: Committed) -> Iterator[tuple[Split, SplitCommits]]:
        """Claims splits, first this process's own, then the others in an order that differs between processes."""
        processes = self._processes
        own = [split for split in free if processes.owns(split)]
        rest = [split for split in free if not processes.owns(split)]
        Random(processes.index).shuffle(rest)
        for split in [*own, *rest]:
            self._others.refresh()
            if self._others.is_claimed(split.number):
                continue
            done = self._commits_of(split, committed)
            if not done.is_finished and self._others.claim(split.number):
                if not processes.owns(split):
                    self._progress.add_work(split.size)
                yield split, done

    def _commits_of(self, split: Split, before: Committed) -> SplitCommits:
        """The current commits of a split; lists all commits only if the split has any."""
        store, first = self._job.store, PartName(split.number, 0)
        names = [f"{COMMITS_FOLDER}/{first}.json", f"{COMMITS_FOLDER}/{first}.last.json"]
        if before.of(split.number).numbers or any(store.size(name) is not None for name in names):
            return Committed(store).of(split.number)
        return SplitCommits()
