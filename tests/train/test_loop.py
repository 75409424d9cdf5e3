"""Whole runs with the embedded checkpoint: their files, and resuming after any interruption."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import GOLDENS

from stella_jax import StellaError
from stella_jax.graceful_shutdown import GracefulShutdown, Stopped
from stella_jax.job.options import JobOptions
from stella_jax.job.run import run_job
from train import loop
from train.__main__ import main
from train.checkpoints import steps_of
from train.metrics import Metrics
from train.recipe import recipe_of, to_toml
from train.step import Step

pytestmark = pytest.mark.soak  # every run compiles, and many are killed

ROOT = Path(__file__).parent.parent.parent

# Words of one length, so that one shape is compiled; three epochs of three batches.
WORDS = ["fog", "law", "owl", "sea", "ink", "jam", "elm", "oak", "ash", "bee", "cow"]
ROWS = [
    {"anchor": f"a {word}", "positive": f"one {word} or two", "negative": f"no {other}"}
    for word, other in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)
]
STEPS = 9
TIMES = ("tokens_per_second",)


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    splits = {"train": ROWS, "eval": ROWS[:4], "test": ROWS[4:8]}
    return {split: write_rows(folder / f"{split}.jsonl", rows) for split, rows in splits.items()}


def tree(splits: dict[str, str], output: Path, **changes: Any) -> dict:
    """A recipe; `changes` are sections, or keys at the top."""
    recipe: dict = {
        "model": "tiny",
        "dim": 32,
        "output": str(output),
        "data": splits | {"max_length": 16},
        "loss": {},
        "optimizer": {"learning_rate": 1e-3},
        "loop": {"batch_size": 4, "save_every": 2},
    }
    for key, value in changes.items():
        recipe[key] = recipe[key] | value if isinstance(recipe.get(key), dict) else value
    return recipe


def train(recipe: dict, stop: GracefulShutdown | None = None) -> tuple[str, list[str]]:
    """The summary and the warnings."""
    warnings: list[str] = []
    return loop.train(recipe_of(recipe), stop or GracefulShutdown(float("inf")), warn=warnings.append), warnings


def lines(output: Path) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


def weights(output: Path) -> dict[str, bytes]:
    """The bytes of the exported model, except files that contain the output's name."""
    export = output / "export"
    return {path.relative_to(export).as_posix(): path.read_bytes() for path in sorted(export.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    """The output of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(tree(data, output))
    return output


def assert_same_bits(output: Path, uninterrupted: Path) -> None:
    assert lines(output) == lines(uninterrupted)
    assert weights(output) == weights(uninterrupted)


# What it writes


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


def test_it_learns(uninterrupted):
    before, after = (line["eval"]["loss"] for line in (lines(uninterrupted)[0], lines(uninterrupted)[-2]))
    assert after < before - 0.1


def test_the_newest_and_the_best_checkpoint_stay(uninterrupted):
    found = {line["step"]: score(line) for line in lines(uninterrupted) if "eval" in line and line["step"]}
    best = max(found, key=lambda step: (found[step], -step))
    assert steps_of(uninterrupted) == sorted({best, 8, 9})


def score(line: dict) -> float:
    return line["eval"]["cosine_accuracy"]


def test_training_again_has_the_same_bits(data, uninterrupted, tmp_path):
    train(tree(data, tmp_path))
    assert_same_bits(tmp_path, uninterrupted)


def test_a_finished_run_has_nothing_left_to_do(data, uninterrupted):
    before = lines(uninterrupted), (uninterrupted / "export/training.json").stat().st_mtime_ns
    summary, _ = train(tree(data, uninterrupted))
    assert re.match(
        r"9 steps, 0 of them since the run was resumed; eval cosine_accuracy .* the model was already in ", summary
    )
    assert (lines(uninterrupted), (uninterrupted / "export/training.json").stat().st_mtime_ns) == before


def test_the_export_is_written_again_where_it_is_missing(data, uninterrupted):
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


# What evaluates it


@pytest.fixture
def pairs(data, tmp_path) -> dict[str, Any]:
    """An evaluator of pairs."""
    rows = [
        {"sentence1": row["anchor"], "sentence2": row[column], "score": float(column == "positive")}
        for row, column in zip(ROWS, ("positive", "negative") * 6, strict=False)
    ]
    return {"name": "own", "kind": "pairs", "path": write_rows(tmp_path / "pairs.jsonl", rows)}


def test_evaluators_of_the_recipe_score_beside_the_rows_and_change_no_bit(data, uninterrupted, pairs, tmp_path):
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
    with pytest.raises(StellaError, match=r"evaluators\.own\.sha256"):
        train(recipe | {"evaluators": [pairs | {"path": changed}, recipe["evaluators"][1]]})


def test_without_rows_to_evaluate_the_first_evaluator_tells_the_best(data, pairs, tmp_path):
    splits = {"train": data["train"]}
    train(tree(splits, tmp_path / "run", evaluators=[pairs], loop={"export": "best"}))
    scores = {line["step"]: line["eval"]["own/spearman_cosine"] for line in lines(tmp_path / "run") if "eval" in line}
    best = max((step for step in scores if step), key=lambda step: (scores[step], -step))
    assert json.loads((tmp_path / "run/export/training.json").read_text())["step"] == best


def test_the_best_is_that_of_the_score_which_the_recipe_names(data, tmp_path):
    train(tree(data, tmp_path / "run", loop={"export": "best", "best": "loss"}))
    losses = {line["step"]: line["eval"]["loss"] for line in lines(tmp_path / "run") if "eval" in line and line["step"]}
    least = min(losses, key=lambda step: (losses[step], step))
    assert json.loads((tmp_path / "run/export/training.json").read_text())["step"] == least
    with pytest.raises(StellaError, match=r"loop\.best: unknown score 'cosine_acuracy'"):
        train(tree(data, tmp_path / "other", loop={"best": "cosine_acuracy"}))
    assert not any("learning_rate" in line for line in lines(tmp_path / "other"))


# What ends it


CHILD = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
{patch}
from train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

# Where a process ends itself: once so many steps are on their way, in an evaluation, in the midst of a save, an export.
END = "os.kill(os.getpid(), signal.SIG{signal})"
AFTER_STEPS = """
from train.step import Step
step, made = Step.__call__, []
def stepped(self, *arguments):
    made.append(1)
    if len(made) > {steps}:
        {end}
    return step(self, *arguments)
Step.__call__ = stepped
"""
IN_EVALUATION = """
from train import evaluation
runner, made = evaluation.Runner, []
def patched(*arguments, **options):
    made.append(1)
    if len(made) > {calls}:
        {end}
    return runner(*arguments, **options)
evaluation.Runner = patched
"""
AS_A_CHECKPOINT_APPEARS = """
rename = os.rename
def renamed(source, target, **options):
    if os.path.basename(target) == "{step}":
        {end}
    return rename(source, target, **options)
os.rename = renamed
"""
IN_EXPORT = """
from train import export
def ended(*arguments):
    {end}
export.card = ended
"""


@pytest.fixture
def child(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python -m train` in a process of its own, patched."""

    def child(recipe: dict, patch: str = "") -> subprocess.CompletedProcess:
        (tmp_path / "recipe.toml").write_text(to_toml(recipe_of(recipe)))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", CHILD.format(patch=patch), str(tmp_path / "recipe.toml")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    return child


def killed(child, recipe: dict, template: str, **settings: object) -> None:
    done = child(recipe, template.format(end=END.format(signal="KILL"), **settings))
    assert done.returncode == -signal.SIGKILL, done.stderr


ENDS = {
    "before any checkpoint": (AFTER_STEPS, {"steps": 1}),
    "after a checkpoint": (AFTER_STEPS, {"steps": 4}),
    "in an evaluation": (IN_EVALUATION, {"calls": 3}),
    "as a checkpoint appears": (AS_A_CHECKPOINT_APPEARS, {"step": 6}),
    "in the export": (IN_EXPORT, {}),
}


@pytest.mark.parametrize("end", ENDS)
def test_killed_anywhere_it_resumes_to_the_same_bits(child, data, uninterrupted, tmp_path, end):
    recipe = tree(data, tmp_path / "run")
    template, settings = ENDS[end]
    killed(child, recipe, template, **settings)
    assert not (tmp_path / "run/export").exists()
    train(recipe)
    assert_same_bits(tmp_path / "run", uninterrupted)


def test_killed_again_and_again_it_arrives(child, data, uninterrupted, tmp_path):
    recipe = tree(data, tmp_path / "run", loop={"save_every": 1})
    for _ in range(2):
        killed(child, recipe, AFTER_STEPS, steps=3)
    summary, _ = train(recipe)
    assert re.search(r"9 steps, [3-7] of them since", summary)
    assert_same_bits(tmp_path / "run", uninterrupted)


OWN_LOSS = """
import jax.numpy as jnp

def ratio(embeddings, columns, *, margin):
    anchor, positive, negative = embeddings
    near, far = (jnp.sum((anchor - other) ** 2, axis=-1) for other in (positive, negative))
    return columns["score"] * jnp.maximum(near / (far + 1) + margin, 0)
"""

OTHERS = {
    "lion and an own loss": {
        "loss": {"name": "own_loss:ratio", "args": {"margin": 0.25}},
        "optimizer": {"name": "lion", "learning_rate": 1e-4, "weight_decay": 0.01},
    },
    "a guide and GradCache": {
        "loss": {"name": "gist_embed", "guide": "tiny", "temperature": 0.1, "mini_batch": 2, "matryoshka_dims": [32, 8]}
    },
    "adafactor": {"optimizer": {"name": "adafactor", "args": {"min_dim_size_to_factor": 16}}},
    "lora": {
        "optimizer": {"weight_decay": 0.01},
        "lora": {"rank": 4, "dropout": 0.1, "targets": ["q_proj", "o_proj", "down_proj"], "head": True},
        "loop": {"mesh": "data=4"},
    },
    "muon": {"optimizer": {"name": "muon", "weight_decay": 0.01}, "new_head": {"dim": 24, "pooling": "cls"}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_optimizer_and_loss_resumes_to_the_same_bits(child, data, uninterrupted, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_loss.py").write_text(OWN_LOSS)
    scored = [row | {"score": 1 + i % 3} for i, row in enumerate(ROWS)]
    train_rows = {"train": write_rows(tmp_path / "scored.jsonl", scored), "columns": ["score"]}
    train_rows |= {split: write_rows(tmp_path / f"{split}.jsonl", scored[:4]) for split in ("eval", "test")}
    recipe = tree(data | train_rows, tmp_path / "run", **OTHERS[name])
    recipe = recipe if "new_head" not in recipe else {key: value for key, value in recipe.items() if key != "dim"}
    killed(child, recipe, AFTER_STEPS, steps=5)
    train(recipe)
    train(recipe | {"output": str(tmp_path / "other")})
    assert_same_bits(tmp_path / "run", tmp_path / "other")
    assert weights(tmp_path / "run") != weights(uninterrupted)
    assert (tmp_path / "run/export/adapter").exists() == (name == "lora")


def test_a_checkpoint_holds_what_trains(data, tmp_path):
    train(tree(data, tmp_path, optimizer={"train_only": ["head/*"], "warmup_ratio": 0.0}, loop={"max_steps": 1}))
    assert sum(path.stat().st_size for path in (tmp_path / "checkpoints/1").rglob("*") if path.is_file()) < 200_000


def sets_in(folder: Path) -> dict:
    """Several sets, of one and two negatives and none, as the ranking loss may have them."""
    pairs = [{"anchor": f"some {word}", "positive": f"one {word}"} for word in WORDS]
    more = [row | {"negative_2": f"not {row['anchor']}"} for row in ROWS[:7]]
    files = {"a.jsonl": ROWS, "b.jsonl": pairs, "c.jsonl": more, "eval.jsonl": ROWS[:4], "eval2.jsonl": pairs[:4]}
    paths = {name: write_rows(folder / name, rows) for name, rows in files.items()}
    sets = [
        {"path": paths["a.jsonl"], "weight": 0.5},
        {"path": paths["b.jsonl"], "weight": 2},
        {"path": paths["c.jsonl"]},
        {"path": paths["eval.jsonl"], "split": "eval"},
        {"path": paths["eval2.jsonl"], "split": "eval", "name": "pairs"},
    ]
    return {"sets": sets, "max_length": 16}


@pytest.mark.parametrize("batches", ["proportional", "round_robin"])
def test_several_sets_go_on_to_the_same_bits(child, tmp_path, batches):
    changes = {"data": sets_in(tmp_path) | {"batches": batches}, "loss": {"name": "multiple_negatives_ranking"}}
    recipe = tree({}, tmp_path / "run", **changes)
    recipe["loss"] = changes["loss"]
    killed(child, recipe, AFTER_STEPS, steps=5)
    train(recipe)
    train(recipe | {"output": str(tmp_path / "other")})
    assert_same_bits(tmp_path / "run", tmp_path / "other")
    scores = lines(tmp_path / "run")[0]["eval"]
    assert scores["loss"] == pytest.approx((scores["eval/loss"] + scores["pairs/loss"]) / 2)
    assert "eval/cosine_accuracy" in scores and "pairs/cosine_accuracy" not in scores


def test_distillation_goes_on_to_the_same_bits(child, tiny, tmp_path):
    """From the vectors of an embedding job; another dimension is refused before the first step."""
    texts = write_rows(tmp_path / "t.jsonl", [{"id": word, "text": f"some {word}"} for word in WORDS])
    run_job(tiny, {"model": "tiny", "revision": None}, [Path(texts)], tmp_path / "teacher", JobOptions())
    rows = {"path": texts, "columns": {"anchor": "text"}, "teachers": [str(tmp_path / "teacher")]}
    loss = {"name": "stella_distillation", "matryoshka_dims": [32, 8], "mini_batch": 2}
    data = {"sets": [rows, rows | {"split": "eval"}]}
    recipe = tree({}, tmp_path / "run", data=data, loss=loss)
    killed(child, recipe, AFTER_STEPS, steps=5)
    train(recipe)
    train(recipe | {"output": str(tmp_path / "other")})
    assert_same_bits(tmp_path / "run", tmp_path / "other")
    assert all(line["eval"]["loss"] > 0 for line in lines(tmp_path / "run") if "eval" in line)
    with pytest.raises(StellaError, match=r"32 dimensions, the student's 64; train a head of 32"):
        train(tree({}, tmp_path / "large", data=data, loss=loss, dim=64))


def test_changed_rows_of_one_of_several_sets_are_refused(tmp_path):
    changes = {"data": sets_in(tmp_path), "loss": {"name": "multiple_negatives_ranking"}, "loop": {"max_steps": 2}}
    recipe = tree({}, tmp_path / "run", **changes)
    recipe["loss"] = changes["loss"]
    train(recipe)
    write_rows(tmp_path / "b.jsonl", ROWS)
    with pytest.raises(StellaError, match=r"data\.train\.b\.sha256 was "):
        train(recipe)


def test_sigterm_saves_at_once_and_says_so(child, data, uninterrupted, tmp_path):
    recipe = tree(data, tmp_path / "run", loop={"save_every": "epoch"})
    done = child(recipe, AFTER_STEPS.format(end=END.format(signal="TERM"), steps=4))
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr == "train: stopped by SIGTERM; run the same command again to resume from the newest checkpoint\n"
    assert steps_of(tmp_path / "run")[-1] == 5
    train(recipe)
    assert_same_bits(tmp_path / "run", uninterrupted)


def test_max_steps_ends_a_run_and_its_schedule(data, tmp_path):
    summary, _ = train(tree(data, tmp_path, loop={"max_steps": 4, "epochs": 100}))
    assert summary.startswith("4 steps;")
    rates = [line["learning_rate"] for line in lines(tmp_path) if "loss" in line]
    assert len(rates) == 4 and rates[0] == 0 and 0 < rates[3] < rates[2]


def test_sigterm_in_an_evaluation_leaves_it_to_the_next_run(data, uninterrupted, tmp_path, monkeypatch):
    stop = GracefulShutdown(float("inf"))
    evaluated = []
    write = Metrics.write

    def written(self, line):
        write(self, line)
        evaluated.extend([line["step"]] if line["step"] == 6 else [])
        if evaluated and not stop.requested:
            stop.request()

    monkeypatch.setattr(Metrics, "write", written)
    with pytest.raises(Stopped):
        train(tree(data, tmp_path), stop)
    assert steps_of(tmp_path)[-1] == 6
    assert lines(tmp_path)[-1]["step"] == 6 and "eval" not in lines(tmp_path)[-1]
    monkeypatch.undo()
    train(tree(data, tmp_path))
    assert_same_bits(tmp_path, uninterrupted)
    assert steps_of(tmp_path) == steps_of(uninterrupted)


# Errors and warnings


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(data, uninterrupted, tmp_path):
    recipe = tree(data, tmp_path / "run")
    train(recipe)
    shutil.rmtree(tmp_path / "run/export")
    largest = max((tmp_path / "run/checkpoints/9").rglob("*"), key=lambda path: path.stat().st_size)
    flip_byte(largest)
    summary, warnings = train(recipe)
    assert summary.startswith("9 steps, 1 of them since")
    assert len(warnings) == 1
    assert "run/checkpoints/9: damaged checkpoint: " in warnings[0]
    assert "Moved it to " in warnings[0]
    assert_same_bits(tmp_path / "run", uninterrupted)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_changed_recipe_is_refused_with_the_difference(data, uninterrupted, tmp_path):
    changed = data | {"train": write_rows(tmp_path / "rows.jsonl", ROWS[:9])}
    before = lines(uninterrupted)
    recipe = tree(changed, uninterrupted, optimizer={"learning_rate": 2e-3}, loop={"save_every": 5, "keep": 7}, dim=64)
    with pytest.raises(StellaError) as caught:
        train(recipe)
    said = str(caught.value)
    assert said.startswith(f"{uninterrupted}: started with a different recipe, model or data: ")
    assert "optimizer.learning_rate was 0.001, is now 0.002" in said
    assert "data.train.rows was 11, is now 9" in said
    assert "dim was 32, is now 64" in said
    assert "save_every" not in said and "keep" not in said
    assert lines(uninterrupted) == before


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    step = Step.__call__

    def poisoned(self, state, batch):
        state, found = step(self, state, batch)
        return state, found | {"loss": found["loss"] * (float("nan") if int(state.step) == 6 else 1)}

    monkeypatch.setattr(Step, "__call__", poisoned)
    with pytest.raises(StellaError, match=r"^loss: nan at step 6 .*step 4"):
        train(tree(data, tmp_path, loop={"eval_every": 100}))
    assert steps_of(tmp_path) == [2, 4]
    assert not (tmp_path / "export").exists()


def test_parameters_that_do_not_move_are_no_training(data, tmp_path):
    with pytest.raises(StellaError, match=r"learning_rate: .* no parameter has changed after 3 steps"):
        train(tree(data, tmp_path, optimizer={"learning_rate": 1e-20}))


def test_nothing_to_learn_is_told(data, tmp_path):
    _, warnings = train(tree(data, tmp_path, loss={"margin": 0.0}, optimizer={"train_only": ["head/bias"]}))
    assert len(warnings) == 1 and warnings[0].startswith("no parameter has changed after 3 steps: no row")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer": {"freeze": ["*"]}}, "exclude every parameter"),
        ({"optimizer": {"train_only": ["heads/*"]}}, "optimizer.train_only: 'heads/*' matches no parameter"),
        ({"loop": {"epochs": 1, "batch_size": 64}}, "warmup_ratio: the learning rate is 0 in all 1"),
        ({"loop": {"batch_size": 64}, "data": {"drop_last": True}}, ": 11 rows, fewer than loop.batch_size = 64"),
        ({"data": {"prompts": {"anchor": "q"}}}, "prompt 'q'"),
        ({"data": {"train": "none.jsonl"}}, "none.jsonl: file not found"),
        ({"dim": 33}, "dim = 33"),
        ({"model": "nowhere"}, "nowhere: not a directory"),
        ({"loss": {"matryoshka_dims": [33]}}, "loss.matryoshka_dims: 33 is above the embedding dimension 32"),
        ({"loss": {"name": "gist_embed", "guide": str(GOLDENS / "stella")}}, "its tokenizer differs from the model's"),
        ({"loop": {"mesh": "data=99"}}, "mesh 'data=99': needs 99 devices"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(data, tmp_path, changes, sentence):
    with pytest.raises(StellaError) as caught:
        train(tree(data, tmp_path, **changes))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_processes_do_not_train_in_one_output(data, tmp_path):
    with loop._locked(tmp_path), pytest.raises(StellaError, match="another process is training in"):
        train(tree(data, tmp_path))


# The command line


def test_errors_of_the_command_line(child, data, tmp_path):
    done = child(tree(data, tmp_path / "run", model="nowhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("train: error: nowhere: not a directory")
    assert done.stderr.count("\n") == 1


def test_overrides_and_wrong_usage(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert main([str(tmp_path / "none.toml")]) == 1
    assert "none.toml: cannot be read" in capsys.readouterr().err
