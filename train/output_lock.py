"""The directory of a run, which one run at a time may train in."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stella_jax.errors import StellaError
from train.hosts import Hosts


@contextmanager
def lock_output(output: Path, hosts: Hosts) -> Iterator[None]:
    """Creates the run's directory, which process 0 locks while it runs.

    Raises:
      StellaError: another run is training in it, or this process does not see it.
    """
    if hosts.is_primary:
        with _locked(output):
            hosts.barrier()
            yield
    else:
        hosts.barrier()
        if not output.is_dir():
            raise not_shared(output, "the directory")
        yield


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    output.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StellaError(f"{output}: another process is training in it; wait for it or use another output.") from None
    finally:
        os.close(descriptor)


def not_shared(output: Path, what: str) -> StellaError:
    """The error of a process that does not see a file or directory of process 0."""
    return StellaError(
        f"{output}: process 0 sees {what} and this host does not; put the output on storage that all hosts share."
    )
