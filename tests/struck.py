"""Runs a command that is struck by a signal on its way.

python struck.py MODULE:NAME CALL SIGNAL PATIENCE JOURNAL COMMAND...

The signal comes before the call of this number (from 0; -1: never) to that function. Other processes of the job count
as dead after PATIENCE seconds of silence, and this one is silent for at most JOURNAL. Where it ends well it prints the
most memory that it has taken.
"""

import os
import signal
import sys
from functools import reduce
from importlib import import_module

from stella_jax.cli import main
from stella_jax.job import heartbeat
from stella_jax.storage.store import LocalStore


def strike(place: str, number: int, kind: signal.Signals) -> None:
    """Has the call of this number to the function at `place` begin with a signal to this process."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, import_module(module))
    real, calls = getattr(owner, name), iter(range(10**9))

    def counted(*args, **options):
        if next(calls) == number:
            os.kill(os.getpid(), kind)
        return real(*args, **options)

    setattr(owner, name, counted)


def most_memory() -> int:
    """The most that this process has had in memory, in KiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


if __name__ == "__main__":
    place, call, kind, patience, silence, *command = sys.argv[1:]
    heartbeat.HEARTBEAT_TIMEOUT = float(patience)
    LocalStore.log_interval = float(silence)
    strike(place, int(call), signal.Signals[kind])
    code = main(command)
    if not code:
        print(f"most memory: {most_memory()} KiB")
    sys.exit(code)
