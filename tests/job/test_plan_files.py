"""The plan's files: what is read is what was written, and damage is noticed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stella_jax import StellaError
from stella_jax.job.duplicates import Duplicates
from stella_jax.job.plan import plan_parts
from stella_jax.job.plan_files import NAMES, PARTS, REPEATS, PlanFiles, write_plan
from stella_jax.job.scanner import PART
from stella_jax.job.store import Store, open_store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    found = open_store(tmp_path if request.param == "local" else f"memory://{tmp_path.name}")
    found.prepare("plan")
    return found


def written(store: Store, ids: Sequence[str], part_rows: int) -> dict[str, str]:
    parts = plan_parts([len(ids)], part_rows)
    table = np.array([(7 * i, len(ids[i * part_rows :][:part_rows]), bytes([i] * 16)) for i in range(len(parts))], PART)
    found = Duplicates(store.scratch)
    for position, row_id in enumerate(ids):
        found.add(row_id, position)
    found.find()
    try:
        return write_plan(store, parts, table, found)
    finally:
        found.close()


def test_entries_and_repeats(store):
    plan = PlanFiles(store, written(store, "abcabdaee", 4))
    assert [int(plan.entry(i)["offset"]) for i in range(3)] == [0, 7, 14]
    assert plan.entry(0)["digest"].tobytes() == bytes(16)
    assert plan.entry(2)["digest"].tobytes() == b"\2" * 16
    assert plan.rows == 9
    assert (plan.rows_of([0, 2]), plan.rows_of([]), plan.rows_of(range(1, 3))) == (5, 0, 5)
    assert [plan.repeats(i) for i in range(3)] == [{3: 0}, {4: 1, 6: 0}, {8: 7}]


def test_without_repeats(store):
    plan = PlanFiles(store, written(store, "abc", 2))
    assert [plan.repeats(0), plan.repeats(1)] == [{}, {}]
    assert store.size(REPEATS) == 0


def test_equal_plans_have_equal_bytes(store):
    first = written(store, "abca", 3), [store.read(name) for name in NAMES]
    assert (written(store, "abca", 3), [store.read(name) for name in NAMES]) == first


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "gone"])
def test_damage_is_noticed(store, name, damage):
    hashes = written(store, "abca", 2)
    data = store.read(name)
    store.remove(name)
    changed = {"flipped": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "longer": data + b"\0"}
    if damage in changed:
        store.append(name, changed[damage])
    with pytest.raises(StellaError, match=f"/{name} is {'missing' if damage == 'gone' else 'damaged'}"):
        PlanFiles(store, hashes)


def test_hashes_of_another_plan_are_noticed(store):
    written(store, "abca", 2)
    with pytest.raises(StellaError, match=f"/{PARTS} is damaged"):
        PlanFiles(store, {})
