"""The processes of a job on many hosts: how one learns which it is.

They meet once, through jax.distributed, and part again: no process depends on another from then on, so that one that
dies takes none with it. A process of its own goes to the meeting, because JAX ends the one that waits in vain.
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

MEETING_SECONDS = 300

# Which of a machine's devices are this process's, as some schedulers tell.
DEVICES = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")

# Ends with the process that started it, of which it holds an end of a pipe.
MEETING = """
import json, os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
import jax
*where, bind, seconds, names = json.loads(sys.argv[1])
jax.distributed.initialize(*where, coordinator_bind_address=bind, initialization_timeout=seconds)
print(json.dumps([jax.process_index(), jax.process_count(), {name: jax.config.read(name) for name in names}]))
jax.distributed.shutdown()
"""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Process `index` of `count`."""

    index: int = 0
    count: int = 1


def meet(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> Hosts:
    """Finds out which process this is; called before JAX is used for anything else.

    Args:
      coordinator: address and port of process 0, at which it listens and the others meet it; None finds out from the
        machine (TPU pod, Slurm, MPI, Kubernetes), or needs no meeting where the other two are given.
      count: number of processes.
      index: this one's, from 0.

    Raises:
      StellaError: nothing tells, not all have come, or the address is none to meet at.
    """
    if coordinator is None and count is not None and index is not None:
        return Hosts(index, count)
    code, answer, errors = _go_to_meeting(
        [coordinator, count, index, bind_address(coordinator, index), MEETING_SECONDS, DEVICES]
    )
    if code:
        raise StellaError(
            f"the processes of the job did not meet: {_reason(errors) or f'exit code {code}'}. Give each --processes N "
            "--process I, and on a TPU slice --coordinator HOST:PORT of process 0 too."
        )
    *numbers, devices = json.loads(answer.splitlines()[-1])
    for name, value in devices.items():
        jax.config.update(name, value)
    return Hosts(*numbers)


def _go_to_meeting(arguments: list[Any]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the process that goes there; accelerators are left to this one."""
    command = [sys.executable, "-P", "-c", MEETING, json.dumps(arguments)]  # -P: nothing of the working directory
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        assert process.stdout
        try:
            answer = process.stdout.read()
        except BaseException:  # a signal: nobody waits for the answer any more
            process.kill()
            process.wait()
            raise
        code = process.wait()
        errors.seek(0)
        return code, answer, errors.read()


def _reason(errors: str) -> str:
    """What a process says at its end: a failed check of C++, or the last line of a traceback."""
    status = re.findall(r"absl::Status: (.*)", errors)
    lines = status or [line for line in errors.splitlines() if re.match(r"\w[\w.]*(Error|Exception)\b", line)]
    return lines[-1].strip().rstrip(".") if lines else ""
