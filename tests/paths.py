"""Paths of the repository and of the golden checkpoints."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
GOLDENS = ROOT / "tests/goldens"
