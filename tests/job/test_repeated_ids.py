"""Repeated ids are found in any order, in bounded memory."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_jax.job import repeated_ids
from stella_jax.job.part_ids import hash_halves, hash_id
from stella_jax.job.repeated_ids import RepeatedIds


def halves(ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return hash_halves(b"".join(map(hash_id, ids)))


def first_places(ids: list[str]) -> list[int]:
    return [first if (first := ids.index(each)) != i else -1 for i, each in enumerate(ids)]


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=6), st.integers(1, 5))
def test_each_repeat_and_its_first_row(groups: list[list[str]], run_rows: int) -> None:
    ids = [each for group in groups for each in group]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(repeated_ids, "RUN_ROWS", run_rows)
        with RepeatedIds(Path(folder)) as found:
            for group in groups:
                found.add(*halves(group))
            assert found.find() == len(ids) - len(set(ids))
            assert found.firsts(0, len(ids)).tolist() == first_places(ids)


def test_equal_halves_of_a_hash_are_not_a_repeat(tmp_path: Path) -> None:
    with RepeatedIds(tmp_path) as found:
        found.add(np.array([7, 7, 7], np.uint64), np.array([1, 2, 1], np.uint64))
        assert found.find() == 1
        assert found.firsts(0, 3).tolist() == [-1, -1, 0]


def test_the_temporary_files_have_no_names(tmp_path: Path) -> None:
    with RepeatedIds(tmp_path) as found:
        found.add(*halves(["a", "b"]))
        assert not [*tmp_path.iterdir()]
