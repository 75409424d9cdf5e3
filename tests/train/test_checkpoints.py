"""Checkpoints of a run's state: what comes back, which stay, and what becomes of damaged ones."""

import gc
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from marks import nightly

from stella_jax.sharding import make_mesh, shard
from train.checkpoints import Checkpoints, newest_record, read_newest, read_state, steps_of
from train.step import State

# Orbax's tasks, which nobody asks after an error.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ADAM = optax.adam(1e-3)
OPTIMIZERS: dict[str, Any] = {
    "adamw in bfloat16": optax.adamw(1e-2, mu_dtype=jnp.bfloat16),
    "lion": optax.lion(1e-3),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "sgd": optax.sgd(1e-2),
    "muon": optax.contrib.muon(1e-2),
    "multi_transform": optax.multi_transform(
        {"trained": ADAM, "frozen": optax.set_to_zero()}, {"encoder/a/b": "frozen", "head/k": "trained"}
    ),
    "MultiSteps": optax.MultiSteps(ADAM, 2),
    "add_noise": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), ADAM),
    "add_noise, other keys": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1, impl="rbg")), ADAM),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-2),
    "reduce_on_plateau": optax.chain(ADAM, optax.contrib.reduce_on_plateau()),
}


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_for_other_tests() -> Iterator[None]:
    yield
    gc.collect()


@cache
def first_state(step: int, optimizer: Any = ADAM) -> State:
    """Before an update."""
    rng = np.random.default_rng(step)
    params = {name: jax.device_put(rng.normal(size=(3, 4)).astype(np.float32)) for name in ("encoder/a/b", "head/k")}
    return State(jax.device_put(np.int32(step)), params, optimizer.init(params))


@cache
def state(step: int, optimizer: Any = ADAM) -> State:
    """After an update by its own parameters."""
    first = first_state(step, optimizer)
    update = optax.with_extra_args_support(optimizer).update
    return first._replace(opt_state=update(first.params, first.opt_state, first.params, value=jnp.float32(step))[1])


def save(output: Path, *steps: int, keep: int = 2, scores: dict[int, float] | None = None) -> None:
    checkpoints = Checkpoints(output, keep, 0)
    for step in steps:
        checkpoints.save(state(step), {"identity": {"x": step}}, (scores or {}).get(step))
    checkpoints.close()


def assert_same(found: State | None, expected: State) -> None:
    assert found is not None
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.sharding) == (b.dtype, b.sharding)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def read(output: Path) -> tuple[State | None, list[str]]:
    warnings: list[str] = []
    return read_newest(output, first_state(0), warnings.append), warnings


def test_a_state_is_restored_bit_for_bit_with_its_record(tmp_path):
    save(tmp_path, 3, 5)
    assert read(tmp_path)[1] == []
    assert_same(read(tmp_path)[0], state(5))
    assert_same(read_state(tmp_path, 3, state(0)), state(3))
    record = newest_record(tmp_path)
    assert record is not None and record["identity"] == {"x": 5}


@pytest.mark.parametrize("name", [*list(OPTIMIZERS)[:2], *nightly(*list(OPTIMIZERS)[2:])])
def test_the_state_of_any_optimizer_is_restored_bit_for_bit(tmp_path, name):
    checkpoints, saved = Checkpoints(tmp_path, 2, 0), state(2, OPTIMIZERS[name])
    checkpoints.save(saved, {})
    checkpoints.close()
    assert_same(read_state(tmp_path, 2, first_state(0, OPTIMIZERS[name])), saved)


def test_a_state_is_restored_with_the_shardings_of_another(tmp_path):
    save(tmp_path, 2)
    mesh = make_mesh("data=4")
    spread = jax.tree.map(lambda leaf: shard(mesh, leaf, P(None, "data") if leaf.ndim else P()), state(0))
    found = read_state(tmp_path, 2, spread)
    assert found.params["head/k"].addressable_shards[0].data.shape == (3, 1)
    assert_same(found, jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state(2), spread))


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
    checkpoints, saved = Checkpoints(tmp_path, 2, 0), jax.tree.map(jnp.copy, state(2))
    checkpoints.save(saved, {})
    jax.tree.map(lambda leaf: leaf.delete(), saved)
    checkpoints.close()
    assert_same(read(tmp_path)[0], state(2))


def test_no_checkpoints(tmp_path):
    assert read(tmp_path) == (None, [])
    assert newest_record(tmp_path) is None
    save(tmp_path)
    assert read(tmp_path) == (None, [])


def test_the_newest_and_the_first_of_the_best_are_kept(tmp_path):
    save(tmp_path, *range(1, 8), keep=2, scores={1: 0.2, 2: 0.9, 4: 0.9, 5: 0.1, 6: 0.3})
    assert steps_of(tmp_path) == [2, 6, 7]


def test_the_best_is_kept_when_a_run_resumes(tmp_path):
    save(tmp_path, 1, 2, 3, scores={1: 0.9, 2: 0.5, 3: 0.1})
    save(tmp_path, 4, 5, 6, scores={5: 0.8})
    assert steps_of(tmp_path) == [1, 5, 6]


def test_a_saved_state_is_not_saved_again(tmp_path):
    save(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path, 2, 2)
    checkpoints.save(state(2), {})
    checkpoints.close()
    record = newest_record(tmp_path)
    assert record is not None and record["identity"] == {"x": 2}


def test_a_state_saved_before_its_evaluation_can_still_be_the_best(tmp_path):
    save(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path, 2, 2)
    for step, score in ((2, 0.9), (3, 0.1), (4, 0.2), (5, 0.3)):
        checkpoints.save(state(step), {"identity": {}}, score)
    checkpoints.close()
    assert steps_of(tmp_path) == [2, 4, 5]
    assert_same(read_state(tmp_path, 2, state(0)), state(2))


def files(output: Path) -> list[Path]:
    return sorted(path for path in (output / "checkpoints/2").rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("saved")
    save(output, 1, 2)
    return output


DAMAGES = {
    "flipped": lambda content: bytes(
        [*content[: len(content) // 2], content[len(content) // 2] ^ 4, *content[len(content) // 2 + 1 :]]
    ),
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "gone": lambda content: None,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_is_noticed(saved, tmp_path, kind):
    for number, name in enumerate(path.relative_to(saved) for path in files(saved)):
        output = Path(shutil.copytree(saved, tmp_path / str(number)))
        content = DAMAGES[kind]((output / name).read_bytes())
        (output / name).unlink() if content is None else (output / name).write_bytes(content)
        found, warnings = read(output)
        assert_same(found, state(1 if warnings else 2))
        if warnings:
            assert warnings[0].startswith(f"{output}/checkpoints/2: ") and f"{output}/damaged/2" in warnings[0]
            assert steps_of(output) == [1] and (output / "damaged/2").is_dir()
            save_after(output)


def save_after(output: Path) -> None:
    """The step can be saved again."""
    checkpoints = Checkpoints(output, 2, 1)
    checkpoints.save(state(2), {})
    checkpoints.close()
    assert steps_of(output) == [1, 2]


def test_all_checkpoints_are_damaged(saved, tmp_path, refused):
    output = Path(shutil.copytree(saved, tmp_path / "run"))
    for step in (1, 2):
        shutil.rmtree(output / f"checkpoints/{step}/state")
    with refused("checkpoints"):
        read(output)


def test_a_killed_save_leaves_no_checkpoint(saved, tmp_path):
    output = Path(shutil.copytree(saved, tmp_path / "run"))
    (output / "checkpoints/2").rename(output / "checkpoints/2.orbax-checkpoint-tmp-0")
    assert steps_of(output) == [1]
    found, warnings = read(output)
    assert_same(found, state(1))
    assert warnings == []


def test_other_parameters_are_refused(saved, refused):
    like = state(0)._replace(params={"encoder/a/b": state(0).params["encoder/a/b"]})
    with refused(f"{saved}/checkpoints/2: ", mask=r"\(.*\)"):
        read_state(saved, 2, like)


def test_the_state_of_another_optimizer_is_refused(saved, refused):
    with refused(f"{saved}/checkpoints/2: ", mask=r"\(.*\)"):
        read_state(saved, 2, state(0, optax.lion(1e-3)))
