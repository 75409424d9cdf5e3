"""The directory of a run, which one run at a time may train in."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stella_jax.errors import StellaError, quoted
from train.checkpoints import CHECKPOINTS_FOLDER
from train.hosts import Hosts
from train.log_writers import TENSORBOARD, WANDB
from train.metrics import FILE as METRICS

FIRST_FILES = {CHECKPOINTS_FOLDER, METRICS, TENSORBOARD, WANDB}


@contextmanager
def lock_output(output: Path, hosts: Hosts) -> Iterator[None]:
    """Creates the run's directory, which process 0 locks while it runs.

    If this run created it and fails before it writes anything, it is removed again.

    Raises:
      StellaError: it is something else than a run's directory, another run is training in it, or this process does not
        see it.
    """
    if hosts.is_primary:
        with _locked(output):
            hosts.barrier()
            hosts.barrier()  # the others have looked for it, so that it may be removed
            yield
    else:
        hosts.barrier()
        if not output.is_dir():
            raise not_shared(output, "the directory")
        hosts.barrier()
        yield


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    _check_output(output)
    is_new = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StellaError(f"{quoted(output)}: not a directory; use another output.") from None
    descriptor = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StellaError(f"{output}: another process is training in it; wait for it or use another output.") from None
    except BaseException:
        if is_new:
            with suppress(OSError):  # not empty
                output.rmdir()
        raise
    finally:
        os.close(descriptor)


def _check_output(output: Path) -> None:
    """Refuses a directory with files and without any that a run writes first."""
    names = {path.name for path in output.glob("[!.]*")}
    if names and not names & FIRST_FILES:
        raise StellaError(
            f"{quoted(output)}: contains {quoted(min(names))} and no training run; use another output, or an empty one."
        )


def not_shared(output: Path, what: str) -> StellaError:
    """The error of a process that does not see a file or directory of process 0."""
    return StellaError(
        f"{output}: process 0 sees {what} and this host does not; put the output on storage that all hosts share."
    )
