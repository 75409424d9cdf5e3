"""Runs a command and sends it a signal at a given call of a function.

python kill_at_call.py MODULE:NAME CALL SIGNAL HEARTBEAT_TIMEOUT LOG_INTERVAL COMMAND...

The signal is sent just before call number CALL (from 0; -1: never) of that function. Other processes of the job count
as dead after HEARTBEAT_TIMEOUT seconds without a heartbeat; this one logs its progress every LOG_INTERVAL seconds. A
command that succeeds prints its peak memory.
"""

import os
import signal
import sys
from functools import reduce
from importlib import import_module

from stella_jax.cli.main import main
from stella_jax.job import heartbeat
from stella_jax.storage.store import LocalStore


def signal_at_call(place: str, number: int, kind: signal.Signals) -> None:
    """Sends this process a signal just before call `number` of the function at `place`."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, import_module(module))
    real, calls = getattr(owner, name), iter(range(10**9))

    def counted(*args, **options):
        if next(calls) == number:
            os.kill(os.getpid(), kind)
        return real(*args, **options)

    setattr(owner, name, counted)


def peak_memory() -> int:
    """Peak resident memory of this process, in KiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


if __name__ == "__main__":
    place, call, kind, timeout, log_interval, *command = sys.argv[1:]
    heartbeat.HEARTBEAT_TIMEOUT = float(timeout)
    LocalStore.log_interval = float(log_interval)
    signal_at_call(place, int(call), signal.Signals[kind])
    code = main(command)
    if not code:
        print(f"peak memory: {peak_memory()} KiB")
    sys.exit(code)
