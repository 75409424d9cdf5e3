"""Checks that a run can learn something."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from datasets_of_rows import dataset_of

from train.checks import UpdateCheck, check_data, check_learning_rates, check_metrics, warnings_for
from train.plans import one_pass
from train.recipe import Recipe, recipe_of

ROWS = dataset_of([(f"a{i}", f"p{i}", f"n{i}") for i in range(10)], "rows.jsonl")


def recipe(**sections: Any) -> Recipe:
    tree: dict[str, Any] = {"model": "m", "output": "o", "data": {"train": "t"}, "loop": {"batch_size": 4}}
    return recipe_of(
        {key: tree.get(key, {}) | sections.get(key, {}) for key in ("data", "loss", "loop")}
        | {key: tree[key] for key in ("model", "output")}
    )


def said(of: Recipe, rows=ROWS, normalized: bool = False) -> list[str]:
    plan = one_pass(rows, of.loop.batch_size, of.data.batch_sampler, 0, 0, of.data.drop_last)
    return list(warnings_for(of, rows, plan, normalized))


def test_a_valid_run_gives_no_warnings():
    assert said(recipe()) == []
    nine = dataset_of([(f"a{i}", f"p{i}", f"n{i}") for i in range(9)], "")
    assert said(recipe(), nine) == [], "a last batch of one row"


def test_fewer_rows_than_a_batch(refused):
    assert said(recipe(loop={"batch_size": 11})) == ["rows.jsonl: 10 rows, fewer than loop.batch_size = 11."]
    check_data(recipe(loop={"batch_size": 11}), ROWS)
    with refused("rows.jsonl", "loop.batch_size"):
        check_data(recipe(loop={"batch_size": 11}, data={"drop_last": True}), ROWS)
    check_data(recipe(data={"drop_last": True}), ROWS)


@pytest.mark.parametrize(("sampler", "batches"), [("no_duplicates", "10 of 10"), ("shuffle", "3 of 3")])
def test_batches_with_one_text_in_every_row(sampler, batches):
    same = dataset_of([(f"a{i}", "the same") for i in range(10)], "rows.jsonl")
    [sentence] = said(recipe(data={"batch_sampler": sampler}), same)
    assert sentence.startswith(f"rows.jsonl: {batches} batches ")
    assert sentence.endswith("'the same' occurs 10 times.")


@pytest.mark.parametrize(
    ("loss", "normalized", "warned"),
    [
        ({"margin": 5.0}, False, False),
        ({"margin": 5.0}, True, True),
        ({"margin": 2.0}, True, False),
        ({"margin": 5.0, "distance": "cosine"}, False, True),
        ({"margin": 5.0, "distance": "manhattan"}, True, False),
        ({"margin": 5.0, "matryoshka_dims": [8]}, False, True),
        ({"margin": 5.0, "name": "multiple_negatives_ranking"}, True, False),
    ],
)
def test_a_margin_that_can_never_be_reached(loss, normalized, warned):
    found = said(recipe(loss=loss), normalized=normalized)
    assert [bool(re.match(r"loss\.margin: 5", sentence)) for sentence in found] == [True] * warned


def test_learning_rates_of_zero(refused):
    check_learning_rates(np.array([0, 1e-5], np.float32))
    with refused("optimizer.warmup_ratio"):
        check_learning_rates(np.zeros(1, np.float32))


def test_a_loss_that_is_not_finite(refused):
    check_metrics(0, 1, {"loss": 1.0, "grad_norm": 0.0})
    with refused("loss", "step 7"):
        check_metrics(4, 7, {"loss": float("nan"), "grad_norm": float("nan")})
    with refused("grad_norm", "step 1"):
        check_metrics(0, 1, {"loss": 1.0, "grad_norm": float("inf")})


BEFORE = {"a": jnp.ones((2, 3)), "b": jnp.zeros(3)}
MOVED = {"a": jnp.ones((2, 3)), "b": jnp.array([0, 1e-3, 0])}
STILL = {"learning_rate": 1e-3, "grad_norm": 0.0, "update_norm": 0.0, "param_norm": 2.0}
PUSHED = STILL | {"grad_norm": 1.0, "update_norm": 1e-3}
WARM_UP = PUSHED | {"learning_rate": 0.0, "update_norm": 0.0}


def test_parameters_that_change_give_no_warning():
    check = UpdateCheck(BEFORE)
    assert [check.after(MOVED, metrics) for metrics in (WARM_UP, PUSHED, PUSHED)] == [None] * 3
    assert check.is_open
    assert check.after(MOVED, PUSHED) is None
    assert not check.is_open


def test_parameters_that_do_not_change_stop_the_run(refused):
    check = UpdateCheck(BEFORE)
    for metrics in (WARM_UP, PUSHED, PUSHED):
        check.after(BEFORE, metrics)
    with refused("optimizer.learning_rate"):
        check.after(BEFORE, PUSHED)


def test_changes_below_float32_s_resolution_do_not_count(refused):
    check = UpdateCheck(BEFORE)
    hardly = PUSHED | {"update_norm": 1e-12}
    for _ in range(2):
        check.after(MOVED, hardly)
    with refused("optimizer.learning_rate"):
        check.after(MOVED, hardly)


def test_no_gradient_gives_a_warning():
    check = UpdateCheck(BEFORE)
    found = [check.after(BEFORE, STILL) for _ in range(3)]
    assert found[:2] == [None, None] and str(found[2]).startswith("no parameter has changed after 3 steps: no row's")
