"""The processes of a job on many hosts, and which of them this one is.

They connect once through jax.distributed and disconnect again, so that no process depends on another afterwards. A
child process does this, because JAX aborts a process that waits in vain.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import jax

from stella_jax.coordinator import bind_address
from stella_jax.errors import StellaError
from stella_jax.readers.splits import Split

CONNECT_SECONDS = 300

# The devices of this process, which some schedulers determine.
DEVICES = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")

# Ends with its parent process, which holds the other end of its stdin.
CONNECT_SCRIPT = """
import json, os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
import jax
*where, bind, seconds, names = json.loads(sys.argv[1])
jax.distributed.initialize(*where, coordinator_bind_address=bind, initialization_timeout=seconds)
print(json.dumps([jax.process_index(), jax.process_count(), {name: jax.config.read(name) for name in names}]))
jax.distributed.shutdown()
"""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process's index among the `count` processes of a job."""

    index: int = 0
    count: int = 1

    def owns(self, split: Split) -> bool:
        """Whether this process takes the split first: every `count`-th is its own."""
        return split.number % self.count == self.index


def resolve_processes(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> Processes:
    """Determines which process this is; called before JAX is used for anything else.

    Args:
      coordinator: address and port at which process 0 listens; None is detected (TPU pod, Slurm, MPI, Kubernetes), and
        not needed if the other two are given.
      count: number of processes; None is detected.
      index: of this process, from 0; None is detected.

    Raises:
      StellaError: they cannot be detected, not all processes connected, or the address cannot be used.
    """
    if coordinator is None and count is not None and index is not None:
        return Processes(index, count)
    code, answer, errors = _connect(
        [coordinator, count, index, bind_address(coordinator, index), CONNECT_SECONDS, DEVICES]
    )
    if code:
        raise StellaError(
            f"the job's processes: not connected ({_reason(errors) or f'exit code {code}'}); pass --processes N and "
            "--process I to each, and on a TPU slice --coordinator HOST:PORT of process 0."
        )
    *numbers, devices = json.loads(answer.splitlines()[-1])
    for name, value in devices.items():
        jax.config.update(name, value)
    return Processes(*numbers)


def _connect(arguments: list[Any]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the child process, which uses no accelerator."""
    command = [
        sys.executable,
        "-P",  # no imports from the working directory
        "-c",
        CONNECT_SCRIPT,
        json.dumps(arguments),
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        assert process.stdout
        try:
            answer = process.stdout.read()
        except BaseException:  # a signal
            process.kill()
            process.wait()
            raise
        code = process.wait()
        errors.seek(0)
        return code, answer, errors.read()


def _reason(errors: str) -> str:
    """The cause in its stderr: a failed check of C++, or the last line of a traceback."""
    status = re.findall(r"absl::Status: (.*)", errors)
    lines = status or [line for line in errors.splitlines() if re.match(r"\w[\w.]*(Error|Exception)\b", line)]
    return lines[-1].strip().rstrip(".") if lines else ""
