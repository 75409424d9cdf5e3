"""A Ray cluster: the way in, what its nodes hold, and what one actor takes of them."""

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

from stella_jax.errors import StellaError

# What one actor takes of a node, as Ray's keyword arguments: num_cpus, num_gpus, resources.
Need = Mapping[str, Any]

# A batch of a CPU keeps about eight cores busy, and every actor holds a copy of the weights.
SLOT_CPUS = 8

# A TPU host of four chips may be one of several in a slice, and would wait for the others to compute together with
# them. These make it a slice of its own. One or two chips Ray describes itself, eight are always a slice of their own.
LONE_HOST = {
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

# Read when Ray is imported: at 0, a cluster that is made here listens at 127.0.0.1 alone, else on every interface. Ray
# names it after the systems where 0 is the default.
LOOPBACK = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected: as the caller already was, or until the end.

    A cluster that is made here listens at 127.0.0.1 alone, if this is the process's first import of Ray.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address in (None, "local"):
            os.environ.setdefault(*LOOPBACK)
        import ray
    except ImportError as error:
        raise StellaError("Ray is not installed; pip install 'stella-jax[ray]'.") from error
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
    """Ray prints pages of logs on stdout for every actor and node that is lost; no public setting stops it."""
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
            # Ray itself would try for two minutes, deaf to signals.
            socket.create_connection((endpoint["host"], int(endpoint["port"])), CONNECT_SECONDS).close()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
        # Of the root: actors look for modules first where the driver was, and that may hold anybody's files.
        with chdir("/"), _sigterm_kept(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # of variables for GPUs; older versions have it at each start
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises whatever its parts raise
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise StellaError(f"{where} cannot be used: {first_line(str(error))}.") from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keeps what this process does on SIGTERM, for which Ray sets a handler. Actors end with the process, or soon."""
    before = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def default_need(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What one actor takes, from `ray.nodes()`.

    Where any node has TPUs, all chips of a host (the smallest, where they differ); else where any has GPUs, one GPU;
    else CPUs, so many that the largest node splits evenly into slots of at least `SLOT_CPUS`, or is one slot. Nodes
    without the accelerator then stay idle: another platform would give other bits.

    Raises:
      StellaError: the nodes have none of these.
    """
    held = [node["Resources"] for node in nodes if node["Alive"]]
    tpus, gpus, cpus = ([h[name] for h in held if h.get(name, 0) >= 1] for name in ("TPU", "GPU", "CPU"))
    if tpus:
        return {"num_cpus": 1, "resources": {"TPU": int(min(tpus))}}
    if gpus:
        return {"num_cpus": 1, "num_gpus": 1}
    if cpus:
        most = int(max(cpus))
        return {"num_cpus": most // max(1, most // SLOT_CPUS)}
    raise StellaError(
        "the nodes of the Ray cluster have no CPU, GPU or TPU to work with; ray status lists what they have."
    )


def slots(nodes: Sequence[Mapping[str, Any]], need: Need) -> int:
    """How many actors all the nodes hold, empty, from `ray.nodes()`."""
    takes = _resources(need)
    held = [node["Resources"] for node in nodes if node["Alive"]]
    # Ray counts in ten-thousandths, and a float falls short of them.
    return sum(min((int(h.get(name, 0) / n + 1e-6) for name, n in takes.items()), default=1) for h in held)


def environment(need: Need) -> Mapping[str, str]:
    """The variables that hold an actor to what it takes of its node; for before JAX has a backend.

    On CPUs XLA sizes its threads by NPROC, else by all cores of the machine, and tokenizers by RAYON_NUM_THREADS; the
    number of threads leaves the bits as they are.
    """
    if need.get("resources", {}).get("TPU") == 4:
        return LONE_HOST
    if need.get("num_gpus") or need.get("resources") or need.get("num_cpus", 0) < 1:
        return {}
    return dict.fromkeys(("NPROC", "RAYON_NUM_THREADS"), str(int(need["num_cpus"])))


def shown_need(need: Need) -> str:
    return ", ".join(f"{name} {n:g}" for name, n in _resources(need).items()) or "nothing"


def _resources(need: Need) -> dict[str, float]:
    amounts = {"CPU": need.get("num_cpus", 0), "GPU": need.get("num_gpus", 0), **need.get("resources", {})}
    return {name: n for name, n in amounts.items() if n}


def first_line(text: str) -> str:
    """The first line, cut, to stand inside a sentence."""
    line = text.strip().partition("\n")[0].rstrip(". ")
    return line if len(line) <= 300 else f"{line[:300]}..."
