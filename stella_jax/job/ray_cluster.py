"""A Ray cluster: connecting to it, and the resources of its nodes and of one actor."""

import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from importlib import import_module
from typing import Any

from stella_jax.errors import StellaError, first_line

# The resources of one actor, as Ray's keyword arguments: num_cpus, num_gpus, resources.
Resources = Mapping[str, Any]

# A batch keeps about eight cores busy, and every actor holds a copy of the weights.
ACTOR_CPUS = 8

# A TPU host of four chips may be one of several in a slice, and would wait for the other hosts. These variables make it
# a slice of its own. Ray sets them itself for one or two chips; eight chips are always a slice of their own.
SINGLE_TPU_HOST = {
    "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
    "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1",
    "TPU_HOST_BOUNDS": "1,1,1",
    "TPU_PROCESS_BOUNDS": "1,1,1",
    "TPU_PROCESS_ADDRESSES": "localhost:8471",
    "TPU_PROCESS_PORT": "8471",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

CONNECT_SECONDS = 10.0

ENDPOINT = re.compile(r"(?P<host>[\w.-]+):(?P<port>\d+)")

# Read when Ray is imported: with 0, a cluster started here listens on 127.0.0.1 only, else on every interface. Ray
# names it after the systems where 0 is the default.
LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected while the block runs, or longer if the caller was connected already.

    A cluster started here listens on 127.0.0.1 only, if this is the process's first import of Ray.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address in (None, "local"):
            os.environ.setdefault(*LOOPBACK)
        import ray
    except ImportError as error:
        raise StellaError("--executor ray: Ray is not installed; pip install 'stella-jax[ray]'.") from error
    if ray.is_initialized():
        yield ray
        return
    _connect(ray, address)
    with _quiet():
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which Ray does not print pages of logs for every lost actor or node; no public setting stops it."""
    try:
        worker: Any = import_module("ray._private.worker")
    except ImportError:
        yield
        return
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = True


def _connect(ray: Any, address: str | None) -> None:
    try:
        if endpoint := ENDPOINT.fullmatch(address or ""):
            # Ray itself would try for two minutes, ignoring signals.
            socket.create_connection((endpoint["host"], int(endpoint["port"])), CONNECT_SECONDS).close()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster started here
        # Actors look for modules first in the driver's working directory, where any file may be.
        with chdir("/"), _sigterm_handler_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about variables for GPUs, at each start of older versions
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises whatever its parts raise
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise StellaError(
            f"{where}: connection failed ({first_line(error)}); check the address and the cluster."
        ) from error


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """A block after which SIGTERM has the handler that it had before; Ray sets one of its own."""
    before = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def default_resources(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The resources of one actor, from `ray.nodes()`.

    If any node has TPUs: all chips of a host (the smallest, if they differ). Else if any node has GPUs: one GPU. Else
    CPUs, so many that the largest node is divided evenly among actors of at least `ACTOR_CPUS`, or holds one actor.
    Nodes without the accelerator stay idle, since another platform would give different bits.

    Raises:
      StellaError: the nodes have none of these.
    """
    nodes_hold = [node["Resources"] for node in nodes if node["Alive"]]
    tpus, gpus, cpus = ([h[name] for h in nodes_hold if h.get(name, 0) >= 1] for name in ("TPU", "GPU", "CPU"))
    if tpus:
        return {"num_cpus": 1, "resources": {"TPU": int(min(tpus))}}
    if gpus:
        return {"num_cpus": 1, "num_gpus": 1}
    if cpus:
        most = int(max(cpus))
        return {"num_cpus": most // max(1, most // ACTOR_CPUS)}
    raise StellaError("the Ray cluster: no node has a CPU, GPU or TPU; see the output of ray status.")


def slots(nodes: Sequence[Mapping[str, Any]], resources: Resources) -> int:
    """How many actors fit on all nodes while these are empty, from `ray.nodes()`."""
    needed = _amounts(resources)
    nodes_hold = [node["Resources"] for node in nodes if node["Alive"]]
    # Ray rounds to ten-thousandths.
    return sum(min((int(h.get(name, 0) / n + 1e-6) for name, n in needed.items()), default=1) for h in nodes_hold)


def environment(resources: Resources) -> Mapping[str, str]:
    """Environment variables that limit an actor to its resources; they are set before JAX has a backend.

    On CPUs, NPROC sets the number of XLA's threads, RAYON_NUM_THREADS the tokenizer's. It does not change the
    bits.
    """
    if resources.get("resources", {}).get("TPU") == 4:
        return SINGLE_TPU_HOST
    if resources.get("num_gpus") or resources.get("resources") or resources.get("num_cpus", 0) < 1:
        return {}
    return dict.fromkeys(("NPROC", "RAYON_NUM_THREADS"), str(int(resources["num_cpus"])))


def format_resources(resources: Resources) -> str:
    return ", ".join(f"{name} {n:g}" for name, n in _amounts(resources).items()) or "nothing"


def _amounts(resources: Resources) -> dict[str, float]:
    cpus, gpus = resources.get("num_cpus", 0), resources.get("num_gpus", 0)
    amounts = {"CPU": cpus, "GPU": gpus, **resources.get("resources", {})}
    return {name: n for name, n in amounts.items() if n}
