"""The resources of actors, and errors before there is a cluster; without Ray."""

import socket
import sys
from pathlib import Path

import pytest

from stella_jax.job.options import JobCommand, JobOptions, ModelOptions, RunOptions
from stella_jax.job.ray_cluster import connected, default_resources, environment, slots
from stella_jax.job.ray_job import run_ray_job

HOST = {"CPU": 96.0, "TPU": 4.0, "TPU-v5litepod-16-head": 1.0}
DEAD = {"NodeID": "d", "Alive": False, "Resources": {}}


def nodes(*held: dict[str, float]) -> list[dict]:
    return [{"NodeID": str(i), "Alive": True, "Resources": h} for i, h in enumerate(held)] + [DEAD]


@pytest.mark.parametrize(
    ("held", "resources", "number"),
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
def test_default_resources(held: list[dict], resources: dict, number: int):
    assert default_resources(nodes(*held)) == resources
    assert slots(nodes(*held), resources) == number


def test_a_cluster_without_processors(refused):
    with refused("Ray cluster"):
        default_resources(nodes({"memory": 1e9}))


def test_fractional_resources():
    assert slots(nodes({"GPU": 1.0}), {"num_gpus": 0.1}) == 10
    assert slots(nodes({"CPU": 1.0}, {"CPU": 1.0}), {"num_cpus": 0}) == 2


def test_the_cores_of_an_actor():
    assert environment({"num_cpus": 8}) == {"NPROC": "8", "RAYON_NUM_THREADS": "8"}
    assert environment({"num_cpus": 1, "num_gpus": 1}) == {}
    assert environment({"num_cpus": 0.5}) == {}


def test_a_host_of_a_larger_slice_runs_alone():
    alone = environment({"num_cpus": 1, "resources": {"TPU": 4}})
    assert alone["TPU_PROCESS_BOUNDS"] == "1,1,1" and alone["TPU_WORKER_HOSTNAMES"] == "localhost"
    assert environment({"resources": {"TPU": 8}}) == {}


def test_without_ray(monkeypatch: pytest.MonkeyPatch, refused):
    monkeypatch.setitem(sys.modules, "ray", None)
    with refused("--executor ray"), connected(None):
        pass


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_no_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch, given: str, refused):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with (
            refused(f"Ray cluster at {address}: ", mask=r"(?<=127\.0\.0\.1:)\d+|\(.*\)"),
            connected(address if given == "argument" else None),
        ):
            pass


def test_a_missing_input_is_reported_before_connecting(tmp_path: Path, refused):
    command = JobCommand((str(tmp_path / "a.jsonl"),), str(tmp_path / "out"), ModelOptions(), JobOptions())
    with refused("a.jsonl"):
        run_ray_job(command, RunOptions(), "127.0.0.1:1")
