"""Whole runs with the included checkpoint: resuming after any interruption, to the same bits."""

import re
from pathlib import Path

import pytest
from marks import nightly
from training_runs import (
    AFTER_STEPS,
    AS_A_CHECKPOINT_APPEARS,
    END,
    IN_EVALUATION,
    IN_EXPORT,
    ROWS,
    WORDS,
    assert_same_bits,
    killed,
    lines,
    train,
    tree,
    weights,
    write_rows,
)

from stella_jax.graceful_shutdown import GracefulShutdown, Stopped
from stella_jax.job.options import JobOptions
from stella_jax.job.run import run_job
from train.checkpoints import steps_of
from train.metrics import MetricsLog

pytestmark = pytest.mark.slow  # every run compiles, and many are killed


ENDS = {
    "before any checkpoint": (AFTER_STEPS, {"steps": 1}),
    "after a checkpoint": (AFTER_STEPS, {"steps": 4}),
    "in an evaluation": (IN_EVALUATION, {"calls": 3}),
    "as a checkpoint appears": (AS_A_CHECKPOINT_APPEARS, {"step": 6}),
    "in the export": (IN_EXPORT, {}),
}


NIGHTLY = ("before any checkpoint", "in an evaluation", "in the export")


@pytest.mark.parametrize("end", [*(end for end in ENDS if end not in NIGHTLY), *nightly(*NIGHTLY)])
def test_a_killed_run_resumes_to_the_same_bits(child, data, uninterrupted, tmp_path, end):
    recipe = tree(data, tmp_path / "run")
    template, settings = ENDS[end]
    killed(child, recipe, template, **settings)
    assert not (tmp_path / "run/export").exists()
    train(recipe)
    assert_same_bits(tmp_path / "run", uninterrupted)


@pytest.mark.nightly
def test_a_run_that_is_killed_twice(child, data, uninterrupted, tmp_path):
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
        "loss": {"name": "ratio_loss:ratio", "args": {"margin": 0.25}},
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


@pytest.mark.parametrize("name", ["lora", *nightly(*(name for name in OTHERS if name != "lora"))])
def test_any_optimizer_and_loss_resumes_to_the_same_bits(child, data, uninterrupted, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ratio_loss.py").write_text(OWN_LOSS)
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


@pytest.mark.nightly
@pytest.mark.parametrize("batches", ["round_robin", "proportional"])
def test_several_sets_resume_to_the_same_bits(child, tmp_path, batches):
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


@pytest.mark.nightly
def test_distillation_resumes_to_the_same_bits(child, tiny, tmp_path, refused):
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
    with refused("loss stella_distillation"):
        train(tree({}, tmp_path / "large", data=data, loss=loss, dim=64))


@pytest.mark.nightly
def test_changed_rows_of_one_of_several_sets(tmp_path, refused):
    changes = {"data": sets_in(tmp_path), "loss": {"name": "multiple_negatives_ranking"}, "loop": {"max_steps": 2}}
    recipe = tree({}, tmp_path / "run", **changes)
    recipe["loss"] = changes["loss"]
    train(recipe)
    write_rows(tmp_path / "b.jsonl", ROWS)
    with refused("data.train.b.sha256 was ", mask="[0-9a-f]{12,}"):
        train(recipe)


def test_sigterm_saves_at_once(child, data, uninterrupted, tmp_path, check_message):
    recipe = tree(data, tmp_path / "run", loop={"save_every": "epoch"})
    done = child(recipe, AFTER_STEPS.format(end=END.format(signal="TERM"), steps=4))
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr.count("\n") == 1
    check_message(done.stderr.rstrip("\n"), "train: ", "SIGTERM")
    assert steps_of(tmp_path / "run")[-1] == 5
    train(recipe)
    assert_same_bits(tmp_path / "run", uninterrupted)


def test_after_sigterm_the_next_run_evaluates(data, uninterrupted, tmp_path, monkeypatch):
    stop = GracefulShutdown(float("inf"))
    evaluated = []
    write = MetricsLog.write

    def written(self, line):
        write(self, line)
        evaluated.extend([line["step"]] if line["step"] == 6 else [])
        if evaluated and not stop.requested:
            stop.request()

    monkeypatch.setattr(MetricsLog, "write", written)
    with pytest.raises(Stopped):
        train(tree(data, tmp_path), stop)
    assert steps_of(tmp_path)[-1] == 6
    assert lines(tmp_path)[-1]["step"] == 6 and "eval" not in lines(tmp_path)[-1]
    monkeypatch.undo()
    train(tree(data, tmp_path))
    assert_same_bits(tmp_path, uninterrupted)
    assert steps_of(tmp_path) == steps_of(uninterrupted)
