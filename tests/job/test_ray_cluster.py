"""What actors take of a cluster's nodes, and what is told before there is one; without Ray."""

import socket
import sys
from pathlib import Path

import pytest

from stella_jax import StellaError
from stella_jax.job.options import JobCommand, JobOptions, ModelOptions, RunOptions
from stella_jax.job.ray_cluster import connected, default_need, environment, slots
from stella_jax.job.ray_job import run_ray_job

HOST = {"CPU": 96.0, "TPU": 4.0, "TPU-v5litepod-16-head": 1.0}
DEAD = {"NodeID": "d", "Alive": False, "Resources": {}}


def nodes(*held: dict[str, float]) -> list[dict]:
    return [{"NodeID": str(i), "Alive": True, "Resources": h} for i, h in enumerate(held)] + [DEAD]


@pytest.mark.parametrize(
    ("held", "need", "number"),
    [
        ([{"CPU": 2.0}], {"num_cpus": 2}, 1),
        ([{"CPU": 2.0}, {"CPU": 16.0}], {"num_cpus": 8}, 2),
        ([{"CPU": 20.0}, {"CPU": 20.0}], {"num_cpus": 10}, 4),
        ([{"CPU": 15.0}], {"num_cpus": 15}, 1),
        ([{"CPU": 64.0}, {"CPU": 32.0, "GPU": 8.0}], {"num_cpus": 1, "num_gpus": 1}, 8),
        ([{"CPU": 8.0}, HOST, HOST], {"num_cpus": 1, "resources": {"TPU": 4}}, 2),
        ([{"CPU": 208.0, "TPU": 8.0}, HOST], {"num_cpus": 1, "resources": {"TPU": 4}}, 3),
    ],
)
def test_one_actor_an_accelerator_set_or_a_slot_of_cpus(held: list[dict], need: dict, number: int):
    assert default_need(nodes(*held)) == need
    assert slots(nodes(*held), need) == number


def test_a_cluster_with_nothing_to_run_on():
    with pytest.raises(StellaError, match="no CPU, GPU or TPU"):
        default_need(nodes({"memory": 1e9}))


def test_slots_of_fractions():
    assert slots(nodes({"GPU": 1.0}), {"num_gpus": 0.1}) == 10
    assert slots(nodes({"CPU": 1.0}, {"CPU": 1.0}), {"num_cpus": 0}) == 2


def test_an_actor_uses_the_cores_that_it_takes():
    assert environment({"num_cpus": 8}) == {"NPROC": "8", "RAYON_NUM_THREADS": "8"}
    assert environment({"num_cpus": 1, "num_gpus": 1}) == {}
    assert environment({"num_cpus": 0.5}) == {}


def test_a_host_of_a_larger_slice_does_not_wait_for_the_others():
    alone = environment({"num_cpus": 1, "resources": {"TPU": 4}})
    assert alone["TPU_PROCESS_BOUNDS"] == "1,1,1" and alone["TPU_WORKER_HOSTNAMES"] == "localhost"
    assert environment({"resources": {"TPU": 8}}) == {}


def test_without_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StellaError, match=r"pip install 'stella-jax\[ray\]'"), connected(None):
        pass


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_where_no_cluster_answers(monkeypatch: pytest.MonkeyPatch, given: str):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with (
            pytest.raises(StellaError, match=f"Ray cluster at {address} cannot be used"),
            connected(address if given == "argument" else None),
        ):
            pass


def test_a_missing_input_is_told_before_a_cluster_is_looked_for(tmp_path: Path):
    command = JobCommand((str(tmp_path / "a.jsonl"),), str(tmp_path / "out"), ModelOptions(), JobOptions())
    with pytest.raises(StellaError, match=r"a\.jsonl"):
        run_ray_job(command, RunOptions(), "127.0.0.1:1")
