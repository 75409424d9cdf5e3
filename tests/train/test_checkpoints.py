"""Checkpoints of a run's state: what comes back, which stay, and what becomes of damaged ones."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from train.optimizer import Moments

from stella_jax import StellaError
from train.checkpoints import Checkpoints, newest_record, read_newest, read_state, steps_of
from train.step import State

# Orbax's tasks, which nobody asks after an error.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def nothing_stays_for_other_tests() -> Iterator[None]:
    yield
    gc.collect()


def state(step: int) -> State:
    rng = np.random.default_rng(step)
    params = {name: jax.device_put(rng.normal(size=(3, 4)).astype(np.float32)) for name in ("encoder/a/b", "head/k")}
    moments = Moments(*({"head/k": params["head/k"] * factor} for factor in (0.5, 0.25)))
    return State(jax.device_put(np.int32(step)), params, moments)


def save(output: Path, *steps: int, keep: int = 2, scores: dict[int, float] | None = None) -> None:
    checkpoints = Checkpoints(output, keep, 0)
    for step in steps:
        checkpoints.save(state(step), {"identity": {"x": step}}, (scores or {}).get(step))
    checkpoints.close()


def assert_same(found: State | None, expected: State) -> None:
    assert found is not None
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def read(output: Path) -> tuple[State | None, list[str]]:
    warnings: list[str] = []
    return read_newest(output, state(0), warnings.append), warnings


def test_a_state_comes_back_bit_for_bit_with_its_record(tmp_path):
    save(tmp_path, 3, 5)
    assert read(tmp_path)[1] == []
    assert_same(read(tmp_path)[0], state(5))
    assert_same(read_state(tmp_path, 3, state(0)), state(3))
    record = newest_record(tmp_path)
    assert record is not None and record["identity"] == {"x": 5}


def test_where_nothing_was_saved_there_is_none(tmp_path):
    assert read(tmp_path) == (None, [])
    assert newest_record(tmp_path) is None
    save(tmp_path)
    assert read(tmp_path) == (None, [])


def test_the_newest_stay_and_the_first_of_the_best(tmp_path):
    save(tmp_path, *range(1, 8), keep=2, scores={1: 0.2, 2: 0.9, 4: 0.9, 5: 0.1, 6: 0.3})
    assert steps_of(tmp_path) == [2, 6, 7]


def test_the_best_stays_over_runs(tmp_path):
    save(tmp_path, 1, 2, 3, scores={1: 0.9, 2: 0.5, 3: 0.1})
    save(tmp_path, 4, 5, 6, scores={5: 0.8})
    assert steps_of(tmp_path) == [1, 5, 6]


def test_a_state_that_is_there_is_not_saved_again(tmp_path):
    save(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path, 2, 2)
    checkpoints.save(state(2), {})
    checkpoints.close()
    record = newest_record(tmp_path)
    assert record is not None and record["identity"] == {"x": 2}


def test_a_state_that_was_saved_before_its_evaluation_can_still_be_the_best(tmp_path):
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
def test_no_damage_to_any_file_comes_back_as_a_state(saved, tmp_path, kind):
    for number, name in enumerate(path.relative_to(saved) for path in files(saved)):
        output = Path(shutil.copytree(saved, tmp_path / str(number)))
        content = DAMAGES[kind]((output / name).read_bytes())
        (output / name).unlink() if content is None else (output / name).write_bytes(content)
        found, warnings = read(output)
        assert_same(found, state(1 if warnings else 2))
        if warnings:
            assert warnings[0].startswith(f"the checkpoint {output}/checkpoints/2 is damaged: ")
            assert warnings[0].endswith(f"It is put aside as {output}/damaged/2, and the one before it is used.")
            assert steps_of(output) == [1] and (output / "damaged/2").is_dir()
            save_after(output)


def save_after(output: Path) -> None:
    """The step can be saved again."""
    checkpoints = Checkpoints(output, 2, 1)
    checkpoints.save(state(2), {})
    checkpoints.close()
    assert steps_of(output) == [1, 2]


def test_where_all_are_damaged_that_is_an_error(saved, tmp_path):
    output = Path(shutil.copytree(saved, tmp_path / "run"))
    for step in (1, 2):
        shutil.rmtree(output / f"checkpoints/{step}/state")
    with pytest.raises(StellaError, match=r"no checkpoint in .* was whole; remove .* to begin anew"):
        read(output)


def test_what_a_kill_left_of_a_save_is_no_checkpoint(saved, tmp_path):
    output = Path(shutil.copytree(saved, tmp_path / "run"))
    (output / "checkpoints/2").rename(output / "checkpoints/2.orbax-checkpoint-tmp-0")
    assert steps_of(output) == [1]
    found, warnings = read(output)
    assert_same(found, state(1))
    assert warnings == []


def test_other_parameters_are_refused(saved):
    like = state(0)._replace(params={"encoder/a/b": state(0).params["encoder/a/b"]})
    with pytest.raises(StellaError, match=r"checkpoints/2 is damaged: "):
        read_state(saved, 2, like)
