"""Fixtures of tests that make whole runs; `runs` has their helpers."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import ROOT
from runs import CHILD, ROWS, train, tree, write_rows

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
