"""Where the tests' data lies."""

from pathlib import Path

GOLDENS = Path(__file__).parent / "goldens"
