"""Tasks on a small Ray cluster in which actors and nodes die; without a model."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jobs import running, runs
from marks import nightly

from stella_jax import StellaError
from stella_jax.job import ray_pool
from stella_jax.job.progress import Counts
from stella_jax.job.ray_cluster import connected
from stella_jax.job.ray_pool import WorkerPool

# Ray takes seconds to start and to notice deaths. It forks, of which JAX warns where JAX runs, as here. Some versions
# leave log files open.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NODE = r"(?<=on node )\S+(?=: failed)"  # its name, in an error


@pytest.fixture(autouse=True)
def short_intervals(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import tests
    monkeypatch.setattr(ray_pool, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(ray_pool, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(ray_pool, "RESTARTS", 1)


class Fake:
    """Writes a file for each number. `trouble` is called before number 3, always or only the first time."""

    def __init__(self, out: Path, trouble: Callable[[], object] = int, always: bool = False):
        self.out, self.trouble, self.always = out, trouble, always
        self.counts = Counts()
        self.stopped = threading.Event()
        (out / f"by-{os.getpid()}").touch()

    def __reduce__(self):
        return Fake, (self.out, self.trouble, self.always)

    def run(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            met = self.out / f"met-{number}"
            if number == 3 and (self.always or not met.exists()):
                met.touch()
                self.trouble()
            with (self.out / f"done-{number}").open("x") as file:
                file.write(f"content of {number}")
            self.counts = Counts(parts=self.counts.parts + 1)
            if self.stopped.wait(0.02):
                return

    def stop(self) -> None:
        self.stopped.set()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error: Exception) -> None:
    raise error


def done(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("done-")) for path in out.glob("done-*"))


def run(
    out: Path,
    numbers: Sequence[int],
    trouble: Callable[[], object] = int,
    always: bool = False,
    *,
    resources: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
    grace: float = 20,
    log: Callable[[str], None] = lambda sentence: None,
    factory: Callable[[], Any] | None = None,
) -> int:
    """Returns how many tasks were reported as done."""
    reported: list[Counts] = []
    with connected(None) as ray:
        pool = WorkerPool(
            ray,
            factory or (lambda: Fake(out, trouble, always)),
            resources or {"num_cpus": 1},
            plan=lambda: [number for number in numbers if number not in done(out)],
            expected=len(numbers),
            on_counts=reported.append,
            log=log,
        )
        pool.run(stop, grace)
    return sum(counts.parts for counts in reported)


def alive(out: Path) -> list[int]:
    """Process ids of actors that have not ended after some seconds."""
    pids = [int(path.name.removeprefix("by-")) for path in out.glob("by-*")]
    for _ in range(300):
        pids = [pid for pid in pids if runs(pid)]
        if not pids:
            break
        time.sleep(0.1)
    return pids


def test_each_task_is_done_once(tmp_path: Path):
    assert run(tmp_path, [9, 1, 2, 4, 7]) == 5
    assert done(tmp_path) == [1, 2, 4, 7, 9]
    assert run(tmp_path, [9, 1]) == 0
    assert not alive(tmp_path)


def test_a_killed_actor_restarts(tmp_path: Path):
    logged: list[str] = []
    assert run(tmp_path, range(20), die, log=logged.append) == 20
    assert done(tmp_path) == list(range(20))
    assert len(logged) == 1 and "a Ray worker was lost; it restarts on " in logged[0]


def test_a_task_that_kills_every_actor(tmp_path: Path, refused):
    with refused("2 workers", "1 splits", mask="(?<=the last with: ).*(?=; see)"):
        run(tmp_path, range(6), die, always=True)
    assert done(tmp_path) == [0, 1, 2, 4, 5]


def test_actors_that_die_while_loading(tmp_path: Path, refused):
    with refused("2 workers", "loading the model", mask="(?<=the last with: ).*(?=; see)"):
        run(tmp_path, [0], factory=die)


@pytest.mark.parametrize(
    ("error", "name"),
    [(StellaError("out: disk full."), "out: disk full."), (KeyError("x\ny"), r"KeyError: 'x\ny'")],
    ids=["ours", "another"],
)
def test_an_error_in_an_actor_ends_the_job(tmp_path: Path, error: Exception, name: str, refused):
    with refused(name, mask=NODE):
        run(tmp_path, [3], lambda: fail(error), always=True)
    assert len(list(tmp_path.glob("by-*"))) == 1 and not alive(tmp_path)


def test_a_model_that_cannot_be_loaded(tmp_path: Path, refused):
    with refused("OSError: no such repository;", mask=NODE):
        run(tmp_path, [0], factory=lambda: fail(OSError("no such repository.")))


def test_a_stop_lets_actors_finish_open_work(tmp_path: Path):
    assert run(tmp_path, range(1000), stop=lambda: len(done(tmp_path)) > 3) == len(done(tmp_path)) < 1000
    assert not alive(tmp_path)


def test_actors_are_killed_after_the_grace_period(tmp_path: Path):
    run(tmp_path, [3], lambda: time.sleep(600), stop=(tmp_path / "met-3").exists, grace=0.1)
    assert done(tmp_path) == [] and not alive(tmp_path)


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused):
    monkeypatch.setattr(ray_pool, "PLACEMENT_SECONDS", 0.3)
    logged: list[str] = []
    resources = {"num_cpus": 0, "resources": {"unobtainium": 2}}
    with refused("unobtainium 2"):
        run(tmp_path, [0], resources=resources, log=logged.append)
    assert logged == ["waiting for a Ray node with room for a worker, which needs unobtainium 2."]


def test_nodes_come_and_go(ray_cluster: Any, tmp_path: Path):
    """The first node comes late and leaves in the middle of a task; another one finishes the job."""
    first = tmp_path / "first"
    nodes: list[Any] = []

    def stay() -> None:
        import ray

        while ray.get_runtime_context().get_node_id() == first.read_text():
            time.sleep(0.1)

    def add(sentence: str) -> None:
        if sentence.startswith("waiting"):
            nodes.append(ray_cluster.add_node(num_cpus=1, resources={"far": 1}))
            first.write_text(nodes[0].node_id)

    def remove() -> bool:
        if nodes and nodes[0] in ray_cluster.worker_nodes and (tmp_path / "met-3").exists():
            ray_cluster.remove_node(nodes[0])
        return False

    resources = {"num_cpus": 1, "resources": {"far": 1}}
    run(tmp_path, range(6), stay, always=True, resources=resources, log=add, stop=remove)
    assert done(tmp_path) == list(range(6)) and len(nodes) == 2
    ray_cluster.remove_node(nodes[1])


DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
from pathlib import Path
from stella_jax.job.progress import Counts
from stella_jax.job.ray_cluster import connected
from stella_jax.job.ray_pool import WorkerPool

out = Path(sys.argv[1])

class Sleeper:
    counts = Counts()

    def run(self, numbers):
        import os, time
        (out / f"by-{os.getpid()}").touch()
        time.sleep(600)

try:
    with connected("local") as ray:
        WorkerPool(ray, Sleeper, {"num_cpus": 1}, plan=lambda: [1], expected=1, on_counts=print).run(lambda: False, 1)
finally:
    (out / "unwound").touch()
"""


@pytest.mark.parametrize("end", [*nightly(signal.SIGINT), signal.SIGTERM], ids=lambda end: end.name)
def test_a_signal_leaves_no_actor(tmp_path: Path, end: signal.Signals):
    """Ray is started by the driver, and ends with it or, if nothing handles the signal, soon after."""
    with running([[sys.executable, "-c", DRIVER, str(tmp_path)]], stderr=subprocess.DEVNULL) as [driver]:
        while not list(tmp_path.glob("by-*")):
            assert driver.poll() is None
            time.sleep(0.1)
        driver.send_signal(end)
        assert driver.wait(60) == -end
    assert (tmp_path / "unwound").exists() == (end == signal.SIGINT) and not alive(tmp_path)


HOLDER = """
import sys
from stella_jax.job.ray_cluster import connected

def search_path():
    import sys
    return sys.path

with connected("local") as ray:
    print(ray.get(ray.remote(search_path).remote()), flush=True)
    sys.stdin.read()
"""


def descendants(pid: int) -> set[int]:
    """The ids of a process and all of its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, new = {pid}, {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses, in hexadecimal, at which these processes listen."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    waiting = {f"socket:[{line[9]}]": line[1].partition(":")[0] for line in lines if line[3] == "0A"}
    addresses = set()
    for link in (link for pid in pids for link in Path(f"/proc/{pid}/fd").glob("*")):
        with suppress(FileNotFoundError):
            addresses.add(waiting.get(os.readlink(link), ""))
    return addresses - {""}


def test_a_local_cluster_listens_on_the_loopback_interface(tmp_path: Path):
    """127.0.0.1, which /proc shows in reverse byte order; its actors import nothing from the working directory."""
    pipe = subprocess.PIPE
    with running([[sys.executable, "-P", "-c", HOLDER]], cwd=tmp_path, stdin=pipe, stdout=pipe, text=True) as [driver]:
        assert driver.stdin and driver.stdout
        assert str(tmp_path) not in driver.stdout.readline()
        assert listening(descendants(driver.pid)) == {"0100007F", "0000000000000000FFFF00000100007F"}
        driver.communicate("", timeout=60)
    assert driver.returncode == 0
