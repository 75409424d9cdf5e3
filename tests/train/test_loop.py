"""Whole runs with the included checkpoint: their files, evaluations, errors and warnings."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from paths import GOLDENS, ROOT
from training_runs import ROWS, STEPS, assert_same_bits, lines, train, tree, weights, write_rows

from stella_jax import StellaError
from train.__main__ import main
from train.checkpoints import steps_of
from train.hosts import Hosts
from train.output_directory import lock_output
from train.step import Step

pytestmark = pytest.mark.slow  # every run compiles

TRIPLETS = {"name": "own", "kind": "triplets", "path": str(ROOT / "examples/porsche_triplets.jsonl")}


# Output


def test_a_line_for_each_step_and_each_evaluation(uninterrupted):
    found = lines(uninterrupted)
    kinds = [("eval" if "eval" in line else "test" if "test" in line else "step", line["step"]) for line in found]
    expected = [("eval", 0), ("test", 0)]
    for step in range(1, STEPS + 1):
        expected += [("step", step)] + ([("eval", step)] if step % 3 == 0 else [])
    assert kinds == [*expected, ("test", STEPS)]
    steps = [line for line in found if "loss" in line]
    assert list(steps[0])[:5] == ["step", "epoch", "loss", "grad_norm", "learning_rate"]
    assert [line["epoch"] for line in steps[:3]] == [0.333333, 0.666667, 1]
    assert steps[0]["learning_rate"] == 0
    assert all(line["update_norm"] > 0 for line in steps[1:])
    assert {"loss", "cosine_accuracy", "cosine_mrr@10"} <= set(found[0]["eval"])


def test_the_loss_goes_down(uninterrupted):
    before, after = (line["eval"]["loss"] for line in (lines(uninterrupted)[0], lines(uninterrupted)[-2]))
    assert after < before - 0.1


def test_the_newest_and_the_best_checkpoint_stay(uninterrupted):
    found = {line["step"]: score(line) for line in lines(uninterrupted) if "eval" in line and line["step"]}
    best = max(found, key=lambda step: (found[step], -step))
    assert steps_of(uninterrupted) == sorted({best, 8, 9})


def score(line: dict) -> float:
    return line["eval"]["cosine_accuracy"]


@pytest.mark.nightly
def test_a_second_run_gives_the_same_bits(data, uninterrupted, tmp_path):
    train(tree(data, tmp_path))
    assert_same_bits(tmp_path, uninterrupted)


def test_a_finished_run_trains_no_further(data, uninterrupted):
    before = lines(uninterrupted), (uninterrupted / "export/training.json").stat().st_mtime_ns
    summary, _ = train(tree(data, uninterrupted))
    assert re.match(
        r"9 steps, 0 of them since the run was resumed; eval cosine_accuracy .* the model was already in ", summary
    )
    assert (lines(uninterrupted), (uninterrupted / "export/training.json").stat().st_mtime_ns) == before


def test_a_missing_export_is_written_again(data, uninterrupted):
    before = weights(uninterrupted)
    (uninterrupted / "export").rename(uninterrupted / "gone")
    train(tree(data, uninterrupted))
    assert weights(uninterrupted) == before


def test_the_best_can_be_exported(data, uninterrupted, tmp_path):
    # An evaluation set that training makes worse: its negatives are the positives.
    swapped = [row | {"positive": row["negative"], "negative": row["positive"]} for row in ROWS]
    held_out = data | {"eval": write_rows(tmp_path / "swapped.jsonl", swapped)}
    recipe = tree(held_out, tmp_path / "run", loop={"export": "best", "early_stop": 1, "epochs": 9})
    summary, _ = train(recipe)
    scores = {line["step"]: score(line) for line in lines(tmp_path / "run") if "eval" in line and line["step"]}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert max(scores) == best + 3, "early_stop"
    assert best in steps_of(tmp_path / "run")
    assert json.loads((tmp_path / "run/export/training.json").read_text())["step"] == best
    assert [line["step"] for line in lines(tmp_path / "run") if "test" in line] == [0, best]
    assert "early" not in summary


def test_a_checkpoint_has_only_trained_parameters(data, tmp_path):
    train(tree(data, tmp_path, optimizer={"train_only": ["head/*"], "warmup_ratio": 0.0}, loop={"max_steps": 1}))
    assert sum(path.stat().st_size for path in (tmp_path / "checkpoints/1").rglob("*") if path.is_file()) < 200_000


def test_max_steps_ends_a_run_and_its_schedule(data, tmp_path):
    summary, _ = train(tree(data, tmp_path, loop={"max_steps": 4, "epochs": 100}))
    assert summary.startswith("4 steps;")
    rates = [line["learning_rate"] for line in lines(tmp_path) if "loss" in line]
    assert len(rates) == 4 and rates[0] == 0 and 0 < rates[3] < rates[2]


# Evaluations


@pytest.fixture
def pairs(data, tmp_path) -> dict[str, Any]:
    """An evaluator of pairs."""
    rows = [
        {"sentence1": row["anchor"], "sentence2": row[column], "score": float(column == "positive")}
        for row, column in zip(ROWS, ("positive", "negative") * 6, strict=False)
    ]
    return {"name": "own", "kind": "pairs", "path": write_rows(tmp_path / "pairs.jsonl", rows)}


def test_evaluators_do_not_change_the_bits_of_a_run(data, uninterrupted, pairs, tmp_path, refused):
    output = tmp_path / "run"
    recipe = tree(
        data, output, evaluators=[pairs, pairs | {"name": "last", "split": "test"}], loop={"log": ["tensorboard"]}
    )
    train(recipe)
    assert weights(output) == weights(uninterrupted)
    for line, before in zip(lines(output), lines(uninterrupted), strict=True):
        for split, name in (("eval", "own"), ("test", "last")):
            if split in line:
                own = {key for key in line[split] if key.startswith(f"{name}/")}
                assert f"{name}/spearman_cosine" in own
                assert {key: line[split][key] for key in line[split].keys() - own} == before[split]
    card = (output / "export/README.md").read_text()
    assert "| own/spearman_cosine |" in card and "[[evaluators]]" in card
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard")).Reload()
    written = [(event.step, event.value) for event in events.Scalars("eval/own/spearman_cosine")]
    assert written == [
        (line["step"], pytest.approx(line["eval"]["own/spearman_cosine"])) for line in lines(output) if "eval" in line
    ]
    changed = write_rows(Path(pairs["path"]), [{"sentence1": "a", "sentence2": "b", "score": 1}])
    with refused("evaluators.own.sha256", mask="[0-9a-f]{12,}"):
        train(recipe | {"evaluators": [pairs | {"path": changed}, recipe["evaluators"][1]]})


def test_without_eval_rows_the_first_evaluator_decides_the_best(data, pairs, tmp_path):
    splits = {"train": data["train"]}
    train(tree(splits, tmp_path / "run", evaluators=[pairs], loop={"export": "best"}))
    scores = {line["step"]: line["eval"]["own/spearman_cosine"] for line in lines(tmp_path / "run") if "eval" in line}
    best = max((step for step in scores if step), key=lambda step: (scores[step], -step))
    assert json.loads((tmp_path / "run/export/training.json").read_text())["step"] == best


def test_the_recipe_names_the_score_of_the_best(data, tmp_path, refused):
    train(tree(data, tmp_path / "run", loop={"export": "best", "best": "loss"}))
    losses = {line["step"]: line["eval"]["loss"] for line in lines(tmp_path / "run") if "eval" in line and line["step"]}
    least = min(losses, key=lambda step: (losses[step], step))
    assert json.loads((tmp_path / "run/export/training.json").read_text())["step"] == least
    with refused("loop.best", "'cosine_acuracy'"):
        train(tree(data, tmp_path / "other", loop={"best": "cosine_acuracy"}))
    assert not any("learning_rate" in line for line in lines(tmp_path / "other"))


# Errors and warnings


def test_after_a_damaged_checkpoint_the_one_before_is_used(data, uninterrupted, tmp_path, check_message):
    recipe = tree(data, tmp_path / "run")
    train(recipe)
    shutil.rmtree(tmp_path / "run/export")
    largest = max((tmp_path / "run/checkpoints/9").rglob("*"), key=lambda path: path.stat().st_size)
    flip_byte(largest)
    summary, warnings = train(recipe)
    assert summary.startswith("9 steps, 1 of them since")
    assert len(warnings) == 1
    check_message(warnings[0], "run/checkpoints/9: ", "run/damaged/9", mask=r"\(.*\)")
    assert_same_bits(tmp_path / "run", uninterrupted)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_changed_recipe(data, uninterrupted, tmp_path, refused):
    changed = data | {"train": write_rows(tmp_path / "rows.jsonl", ROWS[:9])}
    before = lines(uninterrupted)
    recipe = tree(changed, uninterrupted, optimizer={"learning_rate": 2e-3}, loop={"save_every": 5, "keep": 7}, dim=64)
    names = (
        f"{uninterrupted}: ",
        "optimizer.learning_rate was 0.001, is now 0.002",
        "data.train.rows was 11, is now 9",
        "dim was 32, is now 64",
    )
    with refused(*names, mask="[0-9a-f]{12,}") as caught:
        train(recipe)
    assert "save_every" not in str(caught.value) and "keep" not in str(caught.value)
    assert lines(uninterrupted) == before


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, monkeypatch, refused):
    step = Step.__call__

    def poisoned(self, state, batch):
        state, found = step(self, state, batch)
        return state, found | {"loss": found["loss"] * (float("nan") if int(state.step) == 6 else 1)}

    monkeypatch.setattr(Step, "__call__", poisoned)
    with refused("loss: ", "step 6", "step 4"):
        train(tree(data, tmp_path, loop={"eval_every": 100}))
    assert steps_of(tmp_path) == [2, 4]
    assert not (tmp_path / "export").exists()


def test_parameters_that_do_not_change_stop_the_run(data, tmp_path, refused):
    with refused("optimizer.learning_rate"):
        train(tree(data, tmp_path, optimizer={"learning_rate": 1e-20}))


def test_no_gradient_gives_a_warning(data, tmp_path, check_message):
    _, warnings = train(tree(data, tmp_path, loss={"margin": 0.0}, optimizer={"train_only": ["head/bias"]}))
    assert len(warnings) == 1
    check_message(warnings[0], "3 steps")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"optimizer": {"freeze": ["*"]}}, "optimizer"),
        ({"optimizer": {"train_only": ["heads/*"]}}, "'heads/*'"),
        ({"loop": {"epochs": 1, "batch_size": 64}}, "optimizer.warmup_ratio"),
        ({"loop": {"batch_size": 64}, "data": {"drop_last": True}}, "loop.batch_size = 64"),
        ({"data": {"prompts": {"anchor": "q"}}}, "'q'"),
        ({"data": {"prompts": {"anchor": "s2p_query"}}}, "prompt 'Instruct"),
        ({"data": {"max_length": 8}, "evaluators": [TRIPLETS | {"prompts": {"query": "s2s_query"}}]}, "prompt 'Ins"),
        ({"data": {"train": "none.jsonl"}}, "none.jsonl"),
        ({"dim": 33}, "33"),
        ({"model": "nowhere"}, "nowhere"),
        ({"loss": {"matryoshka_dims": [33]}}, "loss.matryoshka_dims"),
        ({"loss": {"name": "gist_embed", "guide": str(GOLDENS / "stella")}}, "loss.guide"),
        ({"loop": {"mesh": "data=99"}}, "data=99"),
        ({"lora": {"targets": ["qproj"]}}, "lora.targets"),
    ],
)
def test_invalid_recipes(data, tmp_path, changes, name, refused):
    with refused(name) as caught:
        train(tree(data, tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_run_at_a_time_trains_in_an_output(data, tmp_path, refused):
    with lock_output(tmp_path, Hosts()), refused(str(tmp_path)):
        train(tree(data, tmp_path))


def test_an_output_that_is_something_else(data, tmp_path, refused):
    (tmp_path / "notes.txt").write_text("mine")
    notes = tmp_path / "notes.txt"
    for output in (tmp_path, notes, notes / "run"):
        with refused(f"{output}: ", "notes.txt"):
            train(tree(data, output))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_output_of_the_users_own_stays(data, tmp_path):
    with pytest.raises(StellaError):
        train(tree(data, tmp_path, dim=33))
    assert tmp_path.exists()


# The command line


def test_errors_of_the_command_line(child, data, tmp_path, check_message):
    done = child(tree(data, tmp_path / "run", model="nowhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    check_message(done.stderr.rstrip("\n"), "train: error: nowhere: ")


def test_wrong_usage(capsys, tmp_path, check_message):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert main([str(tmp_path / "none.toml")]) == 1
    check_message(capsys.readouterr().err.splitlines()[-1], "none.toml: ")
