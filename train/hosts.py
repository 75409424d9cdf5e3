"""The processes that train one model together: how they meet, what they tell one another, and how they part.

Each reads the same recipe, rows and weights, makes the same plan, and holds the share of its own devices; process 0
alone writes. Unlike those of a bulk job they need one another at every step: where one ends, the others end too.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stella_jax.errors import StellaError, reason_of
from stella_jax.sharding import EVERYWHERE, ROWS, make_mesh, place

MEETING_SECONDS = 300

# After which a process whose host is silent counts as dead; one that is killed on a host that lives is seen earlier.
HEARTBEAT_SECONDS = 100

# For process 0 to export, while the others have nothing left to do.
PARTING_SECONDS = 3600

# Before one ends that the others cannot do without: they may be about to say the same. Process 0 takes twice as long,
# for JAX ends the others as soon as it is gone.
LEAVING_SECONDS = 3

NOT_MET = (
    f"this process was ended before it had met the others of the run, by the system or after {MEETING_SECONDS} s; "
    "start the same command on every host, with a --coordinator HOST:PORT of process 0 that all can reach."
)
AGAIN = "look at what the others say, and start the same command on every host again: it goes on after the newest \
checkpoint."
LOST = f"another process of the run has ended; {AGAIN}"
ENDED = f"this process was ended, by the system, or by JAX as another process of the run had ended; {AGAIN}"

# Ends with the process at the other end of the pipe, and says the last line that it was told to keep for then.
WITNESS = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
words = ""
for words in sys.stdin:
    pass
sys.stderr.write(words.lstrip())
"""


class Company:
    """The others, from the meeting to the end of this process.

    JAX ends a process, with a dump of its stack, where another is gone. So that there is a sentence then, too, a
    process beside this one keeps it.
    """

    def __init__(self) -> None:
        self._witness: subprocess.Popen[str] | None = None

    def join(self, coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
        """Meets the others; called before JAX is used for anything else.

        Args:
          coordinator, count, index: address and port of process 0, on which the others meet it, the number of
            processes, and which of them this is; all None finds out from the machine (TPU pod, Slurm, MPI, Kubernetes).

        Raises:
          StellaError: nothing tells.
        """
        self._witness = subprocess.Popen([sys.executable, "-ISc", WITNESS], stdin=subprocess.PIPE, text=True)
        self._keep(NOT_MET)
        jax.config.update("jax_enable_preemption_service", False)  # the command has its own handler of SIGTERM
        try:
            jax.distributed.initialize(
                coordinator,
                count,
                index,
                initialization_timeout=MEETING_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=PARTING_SECONDS,
            )
        except (RuntimeError, ValueError) as error:
            reason = reason_of(error).rstrip(".")
            raise StellaError(
                f"the processes of the run did not meet: {reason}. Give each --coordinator HOST:PORT of process 0, "
                "--processes N and --process I."
            ) from error
        self._keep(ENDED)

    def see_through(self, work: Callable[[], int]) -> int:
        """Does the work and returns its exit code; where that has not parted from the others, ends the process.

        JAX would wait for them at the usual end of a process, and they for this one at the next step.
        """
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
            code = 1
        self._dismiss()
        if jax.distributed.is_initialized():
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(LEAVING_SECONDS * (2 if jax.process_index() == 0 else 1))
            os._exit(code)
        return code

    def _keep(self, words: str) -> None:
        assert self._witness and self._witness.stdin
        self._witness.stdin.write(f"train: error: {words}\n")
        self._witness.stdin.flush()

    def _dismiss(self) -> None:
        if self._witness:
            self._witness.communicate("\n")


@contextmanager
def minding_others() -> Iterator[None]:
    """A block in which they may be lost.

    Raises:
      StellaError: another process has ended, and a collective has told before JAX ended this one.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "Gloo" not in str(error):  # what CPUs speak with one another; accelerators wait until JAX ends them
            raise
        raise StellaError(LOST) from error


class Hosts:
    """This process among those that train together, of which there may be one.

    What they do in common, each must do, in the same order.
    """

    def __init__(self) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.index == 0

    # Devices

    def mesh(self, text: str | None) -> Mesh:
        """The mesh of all devices, each process's side by side.

        Raises:
          StellaError: it is none, leaves devices out, or splits the model over processes.
        """
        if self.count == 1:
            return make_mesh(text)
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        mesh = make_mesh(text, devices)
        if mesh.size != len(devices):
            raise StellaError(
                f"loop.mesh {text!r} takes {mesh.size} of the {len(devices)} devices of {self.count} processes, which "
                f"must all take part; set loop.mesh = 'data={len(devices)}'."
            )
        least = min(Counter(device.process_index for device in devices).values())
        if any(len({device.process_index for device in row}) > 1 for row in mesh.devices):
            raise StellaError(
                f"loop.mesh {text!r} splits the model over processes, whose devices are {least} each; only rows go "
                f"over processes, so model must divide {least}."
            )
        return mesh

    def near(self, mesh: Mesh) -> Mesh:
        """The part of a mesh that is this process's own."""
        if self.count == 1:
            return mesh
        own = [row for row in mesh.devices if row[0].process_index == self.index]
        return Mesh(np.array(own), mesh.axis_names, axis_types=mesh.axis_types)

    def fetch(self, leaf: jax.Array) -> jax.Array:
        """All of an array on this process's own devices, whatever of it was elsewhere; done in common."""
        if leaf.is_fully_addressable:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
        assert isinstance(mesh, Mesh)
        whole = P(*(None if axis == "data" else axis for axis in spec))
        if whole != spec:
            leaf = jax.device_put(leaf, NamedSharding(mesh, whole))
        shards = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(self.near(mesh), whole), shards)

    # What they tell one another

    def told(self, value: Any) -> Any:
        """The JSON value of process 0."""
        if self.count == 1:
            return value
        content = json.dumps(value).encode() if self.first else b""
        size = int(broadcast_one_to_all(np.int32(len(content))))
        padded = np.full(1 << size.bit_length(), ord(" "), np.uint8)  # so that few shapes are compiled
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        return json.loads(np.asarray(broadcast_one_to_all(padded)).tobytes())

    def anywhere(self, flag: bool, mesh: Mesh) -> Any:
        """Whether it is so in any process; where there are many, `bool` waits for the answer."""
        if self.count == 1:
            return flag
        return _any(place(mesh, np.full(mesh.shape["data"], flag, np.int32), ROWS), NamedSharding(mesh, EVERYWHERE))

    def gathered(self, rows: np.ndarray, count: int) -> np.ndarray:
        """`count` rows (n, E) from all, of which process I has I, I + N, I + 2 N and so on."""
        if self.count == 1:
            return rows
        padded = np.zeros((-(-count // self.count), *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return np.asarray(process_allgather(padded)).swapaxes(0, 1).reshape(-1, *rows.shape[1:])[:count]

    def part(self) -> None:
        """Waits until all are here; from now on none needs another."""
        if self.count > 1:
            jax.distributed.shutdown()


@partial(jax.jit, static_argnames="everywhere")
def _any(flags: jax.Array, everywhere: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(flags), everywhere)
