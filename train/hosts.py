"""The processes that train one model together: how they start, communicate and end.

Each reads the same recipe, rows and weights, makes the same batch plan and computes on its own devices; only process 0
writes. Unlike the processes of an embedding job they need each other at every step: if one ends, the others end too.
"""

import json
import os
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

from stella_jax.coordinator import bind_address
from stella_jax.errors import StellaError, first_line
from stella_jax.sharding import BATCH_SPEC, REPLICATED, make_mesh, shard

INITIALIZATION_TIMEOUT = 300  # seconds, as all below

# After this a process on an unreachable host counts as dead; a process killed on a live host is noticed earlier.
HEARTBEAT_TIMEOUT = 100

# Process 0 exports while the others wait.
SHUTDOWN_TIMEOUT = 3600

# A failed process waits before it exits, so that the others can report the same error. Process 0 waits twice as long:
# JAX aborts the others as soon as it is gone.
EXIT_DELAY = 3

LOST = (
    "another process of the run has ended; read its error, then start the same command on every host again: the run "
    "resumes from its newest checkpoint."
)


def initialize(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Connects this process to the others of the run; called before JAX is used for anything else.

    From then on JAX aborts this process, with a message of its own, when another one is gone.

    Args:
      coordinator, count, index: address and port of process 0, number of processes, and index of this one; all None
        takes them from the environment (TPU pod, Slurm, MPI, Kubernetes).

    Raises:
      StellaError: the environment does not have them, or the processes cannot connect.
    """
    bind = bind_address(coordinator, index)
    jax.config.update("jax_enable_preemption_service", False)  # the command has its own handler of SIGTERM
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            coordinator_bind_address=bind,
            initialization_timeout=INITIALIZATION_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        reason = first_line(error).rstrip(".")
        raise StellaError(
            f"the processes of the run did not connect: {reason}; pass each of them --coordinator HOST:PORT of process "
            "0, --processes N and --process I."
        ) from error


def run_to_exit(work: Callable[[], int]) -> int:
    """Runs `work` and returns its exit code; ends this process with it if `work` failed before `Hosts.shutdown`.

    At a usual exit JAX would wait for the other processes, and they for this one at their next step.
    """
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
        code = 1
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(EXIT_DELAY * (2 if jax.process_index() == 0 else 1))
        os._exit(code)
    return code


@contextmanager
def collective_errors() -> Iterator[None]:
    """Turns the error of a collective whose peer is gone into a StellaError.

    Raises:
      StellaError: another process has ended, and a collective failed before JAX aborted this one.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "Gloo" not in str(error):  # the collectives of CPUs; those of accelerators wait until JAX aborts
            raise
        raise StellaError(LOST) from error


class Hosts:
    """This process among the processes of a training run; also for a single one.

    All processes must call the methods that communicate, in the same order.
    """

    def __init__(self) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()

    @property
    def is_primary(self) -> bool:
        """Whether this is process 0, which writes files and prints."""
        return self.index == 0

    # Devices

    def mesh(self, text: str | None) -> Mesh:
        """The mesh of all devices, each process's side by side.

        Raises:
          StellaError: the text is not a mesh, leaves devices out, or splits the model over processes.
        """
        if self.count == 1:
            return make_mesh(text)
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        mesh = make_mesh(text, devices)
        if mesh.size != len(devices):
            raise StellaError(
                f"loop.mesh {text!r}: uses {mesh.size} of the {len(devices)} devices of {self.count} processes, but "
                f"must use all; set loop.mesh = 'data={len(devices)}'."
            )
        least = min(Counter(device.process_index for device in devices).values())
        if any(len({device.process_index for device in row}) > 1 for row in mesh.devices):
            raise StellaError(
                f"loop.mesh {text!r}: splits the model over processes of {least} devices each; choose a model axis "
                f"that divides {least}."
            )
        return mesh

    def local_mesh(self, mesh: Mesh) -> Mesh:
        """The sub-mesh of this process's devices."""
        if self.count == 1:
            return mesh
        own = [row for row in mesh.devices if row[0].process_index == self.index]
        return Mesh(np.array(own), mesh.axis_names, axis_types=mesh.axis_types)

    def fetch(self, leaf: jax.Array) -> jax.Array:
        """The whole array on this process's devices; communicates."""
        if leaf.is_fully_addressable:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
        assert isinstance(mesh, Mesh)
        whole = P(*(None if axis == "data" else axis for axis in spec))
        if whole != spec:
            leaf = jax.device_put(leaf, NamedSharding(mesh, whole))
        shards = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(self.local_mesh(mesh), whole), shards)

    # Communication

    def broadcast(self, value: Any) -> Any:
        """Process 0's JSON value in all processes."""
        if self.count == 1:
            return value
        content = json.dumps(value).encode() if self.is_primary else b""
        size = int(broadcast_one_to_all(np.int32(len(content))))
        padded = np.full(1 << size.bit_length(), ord(" "), np.uint8)  # so that few shapes are compiled
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        return json.loads(np.asarray(broadcast_one_to_all(padded)).tobytes())

    def barrier(self) -> None:
        """Waits for all processes."""
        self.broadcast(None)

    def any_process(self, flag: bool, mesh: Mesh) -> Any:
        """Whether `flag` is true in any process; with several processes, `bool` of the result waits for it."""
        if self.count == 1:
            return flag
        return _any(
            shard(mesh, np.full(mesh.shape["data"], flag, np.int32), BATCH_SPEC), NamedSharding(mesh, REPLICATED)
        )

    def all_gather(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The `count` rows (n, E) of all N processes, of which process I has rows I, I + N, I + 2 N and so on."""
        if self.count == 1:
            return rows
        padded = np.zeros((-(-count // self.count), *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return np.asarray(process_allgather(padded)).swapaxes(0, 1).reshape(-1, *rows.shape[1:])[:count]

    def shutdown(self) -> None:
        """Waits for all processes and disconnects; from now on each may end."""
        if self.count > 1:
            jax.distributed.shutdown()


@partial(jax.jit, static_argnames="replicated")
def _any(flags: jax.Array, replicated: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(flags), replicated)
