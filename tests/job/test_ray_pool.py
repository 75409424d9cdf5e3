"""Parts done by actors of a small Ray cluster on this machine, through deaths of actors and nodes; without a model."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jobs import running, runs

from stella_jax import StellaError
from stella_jax.job import ray_pool
from stella_jax.job.ray_cluster import connected
from stella_jax.job.ray_pool import run_on_ray

# Ray takes its time to start, and to see that somebody died. It forks, which JAX minds where it runs, as beside other
# tests; in a driver it does not. And it leaves files of its logs open, some versions more, some less.
pytestmark = [
    pytest.mark.soak,
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ONE_CPU = {"num_cpus": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Of one node with two CPUs; this process is connected to it."""
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import tests
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        # Why an actor died is told some time after its call has failed; later than this, it is "unavailable".
        patch.setenv("RAY_timeout_ms_task_wait_for_death_info", "60000")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        with connected(cluster.address):
            yield cluster
        cluster.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(ray_pool, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(ray_pool, "LIMIT", 2)


@dataclass(frozen=True)
class Fake:
    """Writes a file for each part. `trouble` is met before that of part 3, every time or only at first."""

    out: Path
    trouble: Callable[[], object] = int
    always: bool = False

    def run(self, parts: Sequence[int]) -> int:
        for part in parts:
            (self.out / f"by-{os.getpid()}").touch()
            met = self.out / f"met-{part}"
            if part == 3 and (self.always or not met.exists()):
                met.touch()
                self.trouble()
            (self.out / f"part-{part}").write_text(f"content of {part}")
        return len(parts)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error: Exception) -> None:
    raise error


def run(runs: Any, parts: Sequence[int], **settings: Any) -> list[int]:
    """Returns what was reported."""
    results: list[int] = []
    defaults = {"chunk": lambda missing, actors: 2, "need": ONE_CPU, "report": results.append, "stop": lambda: False}
    run_on_ray(lambda: runs, parts, **(defaults | settings))
    return results


def done(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("part-")) for path in out.glob("part-*"))


@pytest.mark.usefixtures("cluster")
class TestOneNode:
    def test_every_part_is_done_once_in_chunks(self, tmp_path: Path):
        asked: list[tuple[int, int]] = []

        def chunk(missing: int, actors: int) -> int:
            asked.append((missing, actors))
            return 3 if missing > 3 else 0

        results = run(Fake(tmp_path), [9, 1, 2, 4, 7], chunk=chunk)
        assert sorted(results) == [1, 1, 3] and done(tmp_path) == [1, 2, 4, 7, 9]
        assert [missing for missing, _ in asked] == [5, 2, 1] and {actors for _, actors in asked} <= {1, 2}

    def test_nothing_to_do(self, tmp_path: Path):
        assert run(Fake(tmp_path), []) == []

    def test_an_actor_killed_amid_a_chunk(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        said: list[str] = []
        results = run(Fake(tmp_path, die), range(6), chunk=lambda missing, actors: 4, say=said.append)
        assert done(tmp_path) == list(range(6)) and sum(results) == 6
        assert len(said) == 1 and "its worker process has died; what it had in hand goes to another" in said[0]

    def test_a_part_that_every_actor_dies_over(self, tmp_path: Path):
        with pytest.raises(StellaError, match=r"2 Ray workers in a row died over part 3, the last on .* has died; see"):
            run(Fake(tmp_path, die, always=True), range(6), say=lambda sentence: None)
        assert {2, 3} & set(done(tmp_path)) == {2}

    def test_actors_that_die_before_they_are_ready(self):
        with pytest.raises(StellaError, match="2 Ray workers in a row died before they had loaded the model, the last"):
            run_on_ray(
                lambda: die() or Fake(Path()),
                [0],
                chunk=lambda *_: 1,
                need=ONE_CPU,
                report=print,
                stop=lambda: False,
                say=lambda sentence: None,
            )

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (StellaError("the disk is full; make room."), "^the disk is full; make room.$"),
            (KeyError("x\ny"), r"^parts 2 to 3 failed on the Ray node .* with KeyError: 'x\\ny'; more is in /tmp/ray"),
        ],
    )
    def test_an_error_in_an_actor_ends_the_job(self, tmp_path: Path, error: Exception, sentence: str):
        with pytest.raises(StellaError, match=sentence):
            run(Fake(tmp_path, lambda: fail(error)), [2, 3])
        assert done(tmp_path) == [2]

    def test_a_model_that_cannot_be_loaded(self):
        def factory():
            raise OSError("no such repository.")

        with pytest.raises(StellaError, match=r"loading the model failed on .* with OSError: no such repository; more"):
            run_on_ray(factory, [0], chunk=lambda *_: 1, need=ONE_CPU, report=print, stop=lambda: False)

    def test_a_result_that_does_not_pickle(self):
        class Odd:
            def run(self, parts: Sequence[int]) -> Any:
                return threading.Lock()

        with pytest.raises(StellaError, match=r"a call failed on .* with TypeError: .*lock"):
            run(Odd(), [0])

    def test_stopping_lets_chunks_at_work_finish_and_hands_out_no_more(self, tmp_path: Path):
        results: list[int] = []
        run(Fake(tmp_path), range(40), report=results.append, stop=lambda: bool(results))
        assert results and 2 <= len(done(tmp_path)) == sum(results) < 40

    def test_what_does_not_finish_in_time_is_killed(self, tmp_path: Path):
        begun = tmp_path / "met-3"
        run(Fake(tmp_path, lambda: time.sleep(600)), [3], stop=begun.exists, grace=0.1)
        assert done(tmp_path) == []
        assert not alive(tmp_path)

    def test_no_room(self, tmp_path: Path):
        said: list[str] = []
        need = {"num_cpus": 0, "resources": {"unobtainium": 2}}
        with pytest.raises(StellaError, match=r"no Ray worker found room in 0 s: each takes unobtainium 2, .* hold 0"):
            run(Fake(tmp_path), [0], need=need, patience=0.3, say=said.append)
        assert said == ["waiting for a Ray node with room for a worker, which takes unobtainium 2."]


def alive(out: Path) -> list[int]:
    """The actors that worked there and do not end; a killed one may take some seconds."""
    pids = [int(path.name.removeprefix("by-")) for path in out.glob("by-*")]
    for _ in range(300):
        pids = [pid for pid in pids if runs(pid)]
        if not pids:
            break
        time.sleep(0.1)
    return pids


def test_nodes_come_and_go(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first comes late, and leaves with a chunk at work; with another the job is finished."""
    monkeypatch.setattr(ray_pool, "LIMIT", 9)
    first = tmp_path / "first"
    nodes: list[Any] = []

    def stay() -> None:
        import ray

        while ray.get_runtime_context().get_node_id() == first.read_text():
            time.sleep(0.1)

    def add(sentence: str) -> None:
        if sentence.startswith("waiting"):
            nodes.append(cluster.add_node(num_cpus=1, resources={"far": 1}))
            first.write_text(nodes[0].node_id)

    def report(result: int) -> None:
        if nodes[0] in cluster.worker_nodes:
            cluster.remove_node(nodes[0])

    need = {"num_cpus": 1, "resources": {"far": 1}}
    run(Fake(tmp_path, stay, always=True), range(6), need=need, report=report, say=add)
    assert done(tmp_path) == list(range(6)) and len(nodes) == 2
    cluster.remove_node(nodes[1])


DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
from pathlib import Path
from stella_jax.job.ray_cluster import connected
from stella_jax.job.ray_pool import run_on_ray

out = Path(sys.argv[1])

class Sleeper:
    def run(self, parts):
        import os, time
        (out / f"by-{os.getpid()}").touch()
        time.sleep(600)

try:
    run_on_ray(Sleeper, range(9), chunk=lambda *_: 1, report=print, stop=lambda: False, address="local")
finally:
    (out / "unwound").touch()
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_a_signal_leaves_no_actor(tmp_path: Path, end: signal.Signals):
    """Ray is started by the call here, and ends with it or, where nothing handles the signal, soon after."""
    with running([[sys.executable, "-c", DRIVER, str(tmp_path)]], stderr=subprocess.DEVNULL) as [driver]:
        while not list(tmp_path.glob("by-*")):
            assert driver.poll() is None
            time.sleep(0.1)
        driver.send_signal(end)
        assert driver.wait(60) == -end
    assert (tmp_path / "unwound").exists() == (end == signal.SIGINT) and not alive(tmp_path)
