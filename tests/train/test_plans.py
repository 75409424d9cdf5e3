"""Batch plans as pure functions of (seed, epoch)."""

import numpy as np
import pytest
from datasets_of_rows import dataset_of
from hypothesis import given
from hypothesis import strategies as st

from train.data import Dataset
from train.plans import BatchPlan, most_frequent, one_pass, poor_batches

SAMPLERS = ("no_duplicates", "shuffle", "sequential")


def distinct(count: int) -> Dataset:
    return dataset_of([(f"a{i}", f"p{i}", f"n{i}") for i in range(count)], "")


def lists(plan) -> list[list[int]]:
    return [batch.tolist() for batch in plan]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_row_once_in_full_batches_but_the_last(sampler):
    plan = one_pass(distinct(11), 4, sampler, seed=1, number=0)
    assert [len(batch) for batch in plan] == [4, 4, 3]
    assert sorted(np.concatenate(plan)) == list(range(11))
    assert [len(batch) for batch in one_pass(distinct(11), 4, sampler, 1, 0, drop_last=True)] == [4, 4]


def test_a_plan_depends_on_seed_and_epoch_only():
    rows = distinct(50)
    for sampler in SAMPLERS[:2]:
        plan = lists(one_pass(rows, 8, sampler, seed=1, number=3))
        np.random.default_rng(0).random(100)
        assert lists(one_pass(rows, 8, sampler, seed=1, number=3)) == plan
        assert lists(one_pass(rows, 8, sampler, seed=1, number=4)) != plan
        assert lists(one_pass(rows, 8, sampler, seed=2, number=3)) != plan


def test_plans_do_not_change_between_versions():
    assert lists(one_pass(distinct(7), 3, "no_duplicates", seed=42, number=1)) == [[0, 4, 6], [1, 2, 3], [5]]


def test_sequential_is_the_order_of_the_file():
    assert lists(one_pass(distinct(5), 2, "sequential", 1, 7)) == [[0, 1], [2, 3], [4]]


def test_without_texts_in_common_no_duplicates_is_shuffle():
    shuffled, apart = (lists(one_pass(distinct(30), 4, sampler, 5, 2)) for sampler in ("shuffle", "no_duplicates"))
    assert shuffled == apart


WORDS = st.sampled_from([f"w{i}" for i in range(12)])


@given(
    rows=st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=60),
    batch_size=st.integers(1, 8),
    epoch=st.integers(0, 3),
)
def test_no_text_twice_in_a_batch_in_any_column(rows, batch_size, epoch):
    plan = one_pass(dataset_of(rows, ""), batch_size, "no_duplicates", seed=0, number=epoch)
    assert sorted(np.concatenate(plan)) == list(range(len(rows)))
    for batch in plan:
        assert 1 <= len(batch) <= batch_size
        for i, first in enumerate(batch):
            assert all(set(rows[first]).isdisjoint(rows[second]) for second in batch[i + 1 :])


def test_a_few_repeated_texts_cost_no_batches():
    rows = [(f"a{i}", f"p{i // 4}") for i in range(4000)]  # each positive four times
    plan = one_pass(dataset_of(rows, ""), 16, "no_duplicates", 0, 0)
    assert len(plan) <= 252


def test_rows_that_all_share_a_text_are_batches_of_one():
    rows = [(f"a{i}", "the same") for i in range(50_000)]
    plan = one_pass(dataset_of(rows, ""), 16, "no_duplicates", 0, 0)
    assert len(plan) == 50_000


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_batch_plan_is_the_plans_of_all_epochs(sampler, drop_last):
    rows = dataset_of([(f"a{i}", f"p{i % 9}") for i in range(33)], "")
    plans = [lists(one_pass(rows, 8, sampler, 9, epoch, drop_last)) for epoch in range(4)]
    plan = BatchPlan([rows], 8, sampler, 9, 4, drop_last)
    assert [plan.batch(step).rows.tolist() for step in range(plan.steps)] == [rows for plan in plans for rows in plan]
    positions = [(epoch, batch) for epoch, plan in enumerate(plans) for batch in range(len(plan))]
    assert [plan.position(step) for step in range(plan.steps)] == positions


# Several sets


def sets_of(sizes) -> list[Dataset]:
    return [dataset_of([(f"{i} {j}", f"p{i} {j % 5}") for j in range(size)], f"{i}") for i, size in enumerate(sizes)]


def epochs_of(plan: BatchPlan) -> list[list]:
    """(set, rows) of each batch of each epoch."""
    epochs: list[list] = []
    for step in range(plan.steps):
        epoch = plan.position(step)[0]
        epochs += [[] for _ in range(epoch + 1 - len(epochs))]
        place, rows = plan.batch(step)
        epochs[epoch].append((place, rows.tolist()))
    return epochs


def rows_of(batches: list, place: int) -> list[int]:
    return sorted(row for each, rows in batches for row in rows if each == place)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    batch_size=st.integers(1, 8),
    sampler=st.sampled_from(SAMPLERS),
)
def test_proportional_batches_have_each_row_once_per_epoch(sizes, batch_size, sampler):
    plan = BatchPlan(sets_of(sizes), batch_size, sampler, 7, epochs=2)
    for batches in epochs_of(plan):
        assert [rows_of(batches, place) for place in range(len(sizes))] == [list(range(size)) for size in sizes]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    halves=st.lists(st.integers(0, 5), min_size=2, max_size=4),
    sampler=st.sampled_from(SAMPLERS),
)
def test_a_weight_is_the_number_of_passes_per_epoch(sizes, halves, sampler):
    weights = [half / 2 for half, _ in zip(halves, sizes, strict=False)]
    sizes = sizes[: len(weights)]
    if not sum(weights):
        return
    plan = BatchPlan(sets_of(sizes), 4, sampler, 7, epochs=4, weights=weights)
    batches = [batch for epoch in epochs_of(plan) for batch in epoch]
    for place, (size, weight) in enumerate(zip(sizes, weights, strict=True)):  # four epochs are whole passes
        assert rows_of(batches, place) == sorted(list(range(size)) * int(4 * weight))


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), sampler=st.sampled_from(SAMPLERS))
def test_round_robin_ends_when_a_set_has_no_more_batches(sizes, sampler):
    sets = sets_of(sizes)
    plan = BatchPlan(sets, 4, sampler, 7, epochs=2, batches="round_robin")
    for epoch, batches in enumerate(epochs_of(plan)):
        passes = [lists(one_pass(each, 4, sampler, 7, epoch, set_index=i)) for i, each in enumerate(sets)]
        shortest = min(map(len, passes))
        assert batches == [(place, rows[i]) for i in range(shortest) for place, rows in enumerate(passes)]


def test_round_robin_takes_two_batches_of_a_set_of_weight_two():
    plan = BatchPlan(sets_of([8, 40]), 4, "shuffle", 7, epochs=1, weights=[1, 2], batches="round_robin")
    assert [plan.batch(step).set for step in range(plan.steps)] == [1, 0, 1, 1, 0, 1]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=3),
    batches=st.sampled_from(["proportional", "round_robin"]),
    weight=st.sampled_from([0.3, 1, 2]),
    start=st.integers(0, 20),
)
def test_a_batch_depends_on_its_step_only(sizes, batches, weight, start):
    def plan() -> BatchPlan:
        weights = [weight, *[1.0] * (len(sizes) - 1)]
        return BatchPlan(sets_of(sizes), 4, "no_duplicates", 7, 1, max_steps=21, weights=weights, batches=batches)

    def batch(plan: BatchPlan, step: int) -> tuple:
        place, rows = plan.batch(step)
        return place, rows.tolist()

    whole, resumed = plan(), plan()
    assert [batch(resumed, step) for step in range(start, 21)] == [batch(whole, step) for step in range(21)][start:]


def test_sets_of_equal_size_are_shuffled_differently():
    plan = BatchPlan(sets_of([20, 20]), 20, "shuffle", 7, epochs=1, batches="round_robin")
    assert plan.batch(0).rows.tolist() != plan.batch(1).rows.tolist()


def test_due():
    plan = BatchPlan([distinct(10)], 4, "shuffle", 0, epochs=2)
    assert plan.steps == 6
    assert [done for done in range(7) if plan.due("epoch", done)] == [0, 3, 6]
    assert [done for done in range(7) if plan.due(4, done)] == [0, 4, 6]
    assert [plan.epochs(done) for done in (0, 1, 3, 6)] == [0, pytest.approx(1 / 3), 1, 2]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("max_steps", [1, 5, 6, 14])
def test_max_steps_overrides_epochs(sampler, max_steps):
    rows = dataset_of([(f"a{i}", f"p{i % 5}") for i in range(33)], "")
    cut = BatchPlan([rows], 8, sampler, 9, epochs=2, max_steps=max_steps)
    whole = BatchPlan([rows], 8, sampler, 9, epochs=max_steps)
    assert cut.steps == max_steps
    assert all(cut.batch(step).rows.tolist() == whole.batch(step).rows.tolist() for step in range(max_steps))
    assert all(cut.position(step) == whole.position(step) for step in range(max_steps))
    assert all(cut.epochs(done) == whole.epochs(done) for done in range(max_steps + 1))


def test_due_when_steps_end_within_an_epoch():
    plan = BatchPlan([distinct(10)], 4, "shuffle", 0, epochs=1, max_steps=5)
    assert [done for done in range(6) if plan.due("epoch", done)] == [0, 3, 5]
    assert [done for done in range(6) if plan.due(2, done)] == [0, 2, 4, 5]
    assert plan.epochs(5) == pytest.approx(5 / 3)


@pytest.mark.parametrize("max_steps", [None, 3])
def test_an_epoch_without_batches(max_steps, refused):
    same = dataset_of([(f"a{i}", "the same") for i in range(6)], "rows.jsonl")
    with refused("rows.jsonl", "data.drop_last"):
        BatchPlan([same], 3, "no_duplicates", 0, 2, drop_last=True, max_steps=max_steps)


@pytest.mark.parametrize(
    ("bound", "options"),
    [
        ("MAX_EPOCHS", {"epochs": 4}),
        ("MAX_EPOCHS", {"epochs": 1, "max_steps": 1000}),
        ("MAX_STEPS", {"epochs": 4}),
    ],
)
def test_a_plan_that_would_never_end(monkeypatch, bound, options, refused):
    monkeypatch.setattr(f"train.plans.{bound}", 3)
    with refused("loop.epochs"):
        BatchPlan([distinct(10)], 4, "no_duplicates", 0, **options)


def test_poor_batches():
    same = dataset_of([(f"a{i}", "the same") for i in range(6)], "")
    assert poor_batches(same, one_pass(same, 3, "sequential", 0, 0)) == 2
    assert poor_batches(same, one_pass(same, 3, "no_duplicates", 0, 0)) == 6
    assert poor_batches(distinct(6), one_pass(distinct(6), 3, "shuffle", 0, 0)) == 0
    assert most_frequent(same) == ("the same", 6)
