"""Fixtures of tests that make whole runs; `runs` has their helpers."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import SCORES, Export, origin_of
from paths import GOLDENS, ROOT
from training_runs import CHILD, ROWS, train, tree, write_rows

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.sharding import make_mesh
from train import curves
from train.export import Trained, export
from train.metrics import MetricsLog
from train.new_head import with_new_head
from train.recipe import recipe_of


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    splits = {"train": ROWS, "eval": ROWS[:4], "test": ROWS[4:8]}
    return {split: write_rows(folder / f"{split}.jsonl", rows) for split, rows in splits.items()}


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    """The output of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(tree(data, output))
    return output


@pytest.fixture
def child(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python -m train` in a process of its own, patched."""

    def child(recipe: dict, patch: str = "") -> subprocess.CompletedProcess:
        (tmp_path / "recipe.toml").write_text(recipe_of(recipe).to_toml())
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", CHILD.format(patch=patch), str(tmp_path / "recipe.toml")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    return child


@pytest.fixture
def metrics(tmp_path: Path):
    (tmp_path / "run").mkdir()
    with MetricsLog(tmp_path / "run", 0) as metrics:
        metrics.write({"step": 0, "epoch": 0.0, "eval": SCORES})
        for step in (1, 2):
            metrics.write({"step": step, "epoch": step / 2, "loss": 3.0 + step})
        metrics.write({"step": 2, "epoch": 1.0, "eval": SCORES | {"cosine_accuracy": 0.75}})
        yield metrics


@pytest.fixture
def exported(tmp_path: Path, metrics: MetricsLog, monkeypatch) -> Export:
    """Exports a checkpoint with the named parameters changed; returns the directory and these parameters.

    Its picture is empty, as drawing takes longer than the rest; test_metrics.py draws.
    """

    def draw(metrics: MetricsLog, path: Path, best: str | None) -> bool:
        path.unlink(missing_ok=True)
        path.touch()
        return True

    monkeypatch.setattr(curves, "draw", draw)

    def exported(
        source: str | Path, moved: str = "", dim: int | None = None, **more: Any
    ) -> tuple[Path, dict[str, np.ndarray]]:
        origin = origin_of(str(GOLDENS / source), **more)
        base = Checkpoint.open(GOLDENS / source)
        base = with_new_head(base, origin.recipe.new_head, 0) if origin.recipe.new_head else base
        head = base.spec.head(dim)
        params = base.load_model([head], make_mesh()).params()
        rng = np.random.default_rng(0)
        trained = {name: np.asarray(leaf) for name, leaf in params.items() if name.startswith(moved)}
        trained = {name: leaf + rng.normal(0, 0.02, leaf.shape).astype(np.float32) for name, leaf in trained.items()}
        export(Trained(base, head, jax.tree.map(jnp.asarray, trained)), origin, metrics, tmp_path / "export")
        return tmp_path / "export", trained

    return exported
