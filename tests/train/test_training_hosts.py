"""One model trained by two processes on this machine, with two simulated devices each."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jobs import environment, free_port, running
from marks import nightly, slow
from safetensors.numpy import load_file

from stella_jax import Stella
from stella_jax.graceful_shutdown import GracefulShutdown
from train import hosts, loop
from train.__main__ import main
from train.checkpoints import steps_of
from train.recipe import recipe_of

# Words of one length, so that one shape is compiled; three epochs of two batches.
WORDS = ["fog", "law", "owl", "sea", "ink", "jam", "elm", "oak", "ash", "bee", "cow"]
ROWS = [
    {"anchor": f"a {word}", "positive": f"one {word} or two", "negative": f"no {other}"}
    for word, other in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)
]
STEPS = 6

# What Gloo prints when processes connect; they may interrupt each other between any two words of it.
GLOO = re.compile(r"(\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :|\d|\s)*")


def recipe(folder: Path, output: Path, **settings: Any) -> dict:
    data: dict = {}
    for split, rows in {"train": ROWS, "eval": ROWS[:5]}.items():
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data[split] = str(path)
    return {
        "model": "tiny",
        "dim": 32,
        "output": str(output),
        "data": data | {"max_length": 16},
        "optimizer": {"learning_rate": 1e-3},
        "loop": {"batch_size": 8, "save_every": 2, "mesh": "data=4"} | settings,
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Programs are compiled once for all runs."""
    return tmp_path_factory.mktemp("xla")


class Pair:
    """Runs of `python -m train` by two processes."""

    def __init__(self, folder: Path, cache: Path):
        self._folder = folder
        self._environment = environment(cache) | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}

    def _command(self, wanted: dict, index: int, where: str, patch: str) -> list[str]:
        path = self._folder / f"recipe-{index}.toml"
        path.write_text(recipe_of(wanted).to_toml())
        given = ["--executor", "distributed", "--coordinator", where, "--processes", "2", "--process", str(index)]
        return [sys.executable, "-c", CHILD.format(patch=patch), str(path), *given]

    def run(self, *wanted: dict, patches: tuple[str, str] = ("", "")) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each process, with one recipe or one for each."""
        where = f"127.0.0.1:{free_port()}"
        commands = [self._command(wanted[i % len(wanted)], i, where, patches[i]) for i in (0, 1)]
        return self._said(commands)

    def run_one(self, wanted: dict, index: int, patch: str) -> tuple[int, str, str]:
        """The same of a process that no other connects to."""
        [said] = self._said([self._command(wanted, index, f"127.0.0.1:{free_port()}", patch)])
        return said

    def _said(self, commands: list[list[str]]) -> list[tuple[int, str, str]]:
        pipe = subprocess.PIPE
        options: dict[str, Any] = {"env": self._environment, "cwd": self._folder, "stdout": pipe, "stderr": pipe}
        with running(commands, text=True, **options) as processes:
            said = [process.communicate(timeout=900) for process in processes]
        return [
            (process.returncode, "\n".join(line for line in out.splitlines() if not GLOO.fullmatch(line)), err)
            for process, (out, err) in zip(processes, said, strict=True)
        ]


CHILD = """
import os, signal, sys
from train import hosts
hosts.HEARTBEAT_TIMEOUT = 20
{patch}
from train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
SIGNAL_AT_STEP = """
import time
from pathlib import Path
from train.checkpoints import steps_of
from train.step import Step
step, made = Step.__call__, []
def stepped(self, *arguments):
    made.append(1)
    if len(made) == {step}:
        while not {ready}:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIG{signal})
    return step(self, *arguments)
Step.__call__ = stepped
"""


@pytest.fixture
def pair(tmp_path: Path, cache: Path) -> Pair:
    return Pair(tmp_path, cache)


def lines(output: Path) -> list[dict]:
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in found]


def weights(output: Path) -> dict[str, np.ndarray]:
    return load_file(output / "export/model.safetensors")


def alone(wanted: dict) -> Path:
    loop.train(recipe_of(wanted), GracefulShutdown(float("inf")))
    return Path(wanted["output"])


@pytest.fixture(scope="module")
def by_one(tmp_path_factory) -> Path:
    """The output of a run by one process on as many devices."""
    folder = tmp_path_factory.mktemp("one")
    return alone(recipe(folder, folder / "run"))


@pytest.fixture(scope="module")
def by_two(tmp_path_factory, cache: Path) -> Path:
    """The run of two undisturbed processes."""
    folder = tmp_path_factory.mktemp("two")
    first, second = Pair(folder, cache).run(recipe(folder, folder / "run"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].startswith(f"{folder / 'run'}: {STEPS} steps; ") and not second[1]
    return folder / "run"


def assert_near(found: Path, like: Path) -> None:
    """Every number of every line, to 1e-5, and what the exports embed, to 1e-3.

    Where a gradient is rounding alone, as of the biases of keys, Adam makes whole steps of it, and the weights differ.
    """
    for line, expected in zip(lines(found), lines(like), strict=True):
        assert line.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, dict):
                assert line[name] == pytest.approx(value, rel=1e-5)
            else:
                assert line[name] == pytest.approx(value, rel=1e-5), name
    vectors = [Stella.from_pretrained(output / "export").encode(WORDS) for output in (found, like)]
    np.testing.assert_allclose(*vectors, atol=1e-3)


def assert_same_bits(found: Path, like: Path) -> None:
    assert lines(found) == lines(like)
    for name, weight in weights(like).items():
        np.testing.assert_array_equal(weights(found)[name], weight)


@pytest.mark.nightly
def test_two_processes_train_what_one_does(by_one: Path, by_two: Path) -> None:
    assert_near(by_two, by_one)
    assert steps_of(by_two) == steps_of(by_one)
    assert {path.name for path in by_two.iterdir()} == {path.name for path in by_one.iterdir()}


@pytest.mark.nightly
def test_any_mesh_over_two_processes(pair: Pair, tmp_path: Path) -> None:
    split = {"mesh": "data=2,model=2", "fsdp": True}
    ended = pair.run(recipe(tmp_path, tmp_path / "two", **split))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert_near(tmp_path / "two", alone(recipe(tmp_path, tmp_path / "one", **split)))


@pytest.mark.parametrize("killed", [*slow(1), *nightly(0)])
def test_after_a_kill_both_processes_end_and_resume_to_the_same_bits(pair, by_two, tmp_path, killed) -> None:
    wanted = recipe(tmp_path, tmp_path / "run")
    patches = ["", ""]
    patches[killed] = SIGNAL_AT_STEP.format(step=4, signal="KILL", ready=f"steps_of(Path({str(tmp_path / 'run')!r}))")
    ended = pair.run(wanted, patches=(patches[0], patches[1]))
    assert ended[killed][0] == -signal.SIGKILL
    code, out, err = ended[1 - killed]
    assert code in (1, -signal.SIGABRT) and not out  # by a failed collective, or by JAX
    assert code != 1 or f"train: error: {hosts.LOST}\n" in err
    assert 0 < steps_of(tmp_path / "run")[-1] < STEPS
    assert [code for code, _, _ in pair.run(wanted)] == [0, 0]
    assert_same_bits(tmp_path / "run", by_two)


@pytest.mark.slow
def test_sigterm_to_one_stops_both_and_one_alone_can_resume(pair, by_two, tmp_path, check_message) -> None:
    wanted = recipe(tmp_path, tmp_path / "run", save_every="epoch")
    ended = pair.run(wanted, patches=("", SIGNAL_AT_STEP.format(step=3, signal="TERM", ready=True)))
    for code, out, err in ended:
        assert (code, out) == (143, "")
        assert err.count("\n") == 1
        check_message(err.rstrip("\n"), "train: ", "SIGTERM")
    assert steps_of(tmp_path / "run")[-1] in (3, 4, 5)
    alone(wanted)
    assert_near(tmp_path / "run", by_two)


@pytest.mark.nightly
def test_an_output_that_is_not_shared(pair, by_two, tmp_path, check_message) -> None:
    wanted = [recipe(tmp_path, by_two), recipe(tmp_path, tmp_path / "other")]
    first, second = pair.run(*wanted)
    assert first[0] in (1, -signal.SIGABRT)
    assert second[0] == 1
    [error] = [line for line in second[2].splitlines() if line.startswith("train: error: ")]
    check_message(error, f"{tmp_path}/other: ")
    assert not (tmp_path / "other").exists()


@pytest.mark.nightly
def test_every_process_reports_an_error_in_the_recipe(pair, tmp_path, check_message) -> None:
    for code, out, err in pair.run(recipe(tmp_path, tmp_path / "run", mesh="data=2")):
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        check_message(err.rstrip("\n"), "train: error: loop.mesh 'data=2': ", "loop.mesh = 'data=4'")


@pytest.mark.slow
def test_a_process_that_no_other_joins_ends(pair, tmp_path) -> None:
    patch = "hosts.INITIALIZATION_TIMEOUT = 3"
    code, out, err = pair.run_one(recipe(tmp_path, tmp_path / "run"), 1, patch)
    assert code == -signal.SIGABRT and not out
    assert "DEADLINE_EXCEEDED" in err  # JAX's own message


# One alone


def test_a_single_process_has_all_rows() -> None:
    one = hosts.Hosts()
    mesh = one.mesh("data=8")
    assert one.is_primary and one.local_mesh(mesh) is mesh and mesh.size == 8
    assert one.broadcast({"a": (1, 2)}) == {"a": (1, 2)}
    rows = np.ones((3, 2), np.float32)
    assert one.all_gather(rows, 3) is rows
    leaf = jax.device_put(rows)
    assert one.fetch(leaf) is leaf
    assert [one.any_process(flag, mesh) for flag in (True, False)] == [True, False]
    one.barrier()
    one.shutdown()


@pytest.fixture
def no_cluster(monkeypatch) -> None:
    """No scheduler names a coordinator."""

    def initialize(*arguments: Any, **settings: Any) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)


def test_without_a_cluster_environment(no_cluster, tmp_path, capfd, check_message) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_of(recipe(tmp_path, tmp_path / "run")).to_toml())
    assert main([str(path), "--executor", "distributed"]) == 1
    names = ("coordinator_address should be defined;", "--coordinator", "--processes", "--process ")
    check_message(capfd.readouterr().err.rstrip("\n"), *names)


def test_the_coordinator_binds_to_its_address(monkeypatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **settings: given.update(settings))
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    hosts.initialize("127.0.0.1:9822", 2, 0)
    assert given["coordinator_bind_address"] == "127.0.0.1:9822"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--processes", "2"], ["--coordinator, --processes and --process: ", "--executor distributed"]),
        (["--executor", "distributed", "--process", "0"], ["--coordinator, --processes and --process: "]),
        (
            ["--executor", "distributed", "--coordinator", "a:1", "--processes", "2", "--process", "2"],
            ["--process 2: ", "--processes 2"],
        ),
    ],
)
def test_invalid_process_numbers(tmp_path, capsys, options, names, check_message) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_of(recipe(tmp_path, tmp_path / "run")).to_toml())
    assert main([str(path), *options]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), *names)


def test_a_mesh_takes_all_devices_and_splits_no_model_over_processes(monkeypatch, refused) -> None:
    @dataclass(frozen=True)
    class Device:
        id: int
        process_index: int
        platform: str = "cpu"

    monkeypatch.setattr(jax, "devices", lambda: [Device(i, i % 2) for i in range(4)])
    two = hosts.Hosts()
    two.count = 2
    mesh = two.mesh("data=2,model=2")
    assert [[device.process_index for device in row] for row in mesh.devices] == [[0, 0], [1, 1]]
    with refused("loop.mesh None: ", "4 devices"):
        two.mesh(None)
    with refused("loop.mesh 'data=1,model=4'"):
        two.mesh("data=1,model=4")
