"""Whole runs with the included checkpoint, for tests: rows, recipes, and processes that end themselves."""

import json
import signal
from pathlib import Path
from typing import Any

from stella_jax.graceful_shutdown import GracefulShutdown
from train import loop
from train.recipe import recipe_of

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


def assert_same_bits(output: Path, uninterrupted: Path) -> None:
    assert lines(output) == lines(uninterrupted)
    assert weights(output) == weights(uninterrupted)


CHILD = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
{patch}
from train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

# Where a process ends itself: once so many steps are on their way, in an evaluation, during a save, an export.
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


def killed(child, recipe: dict, template: str, **settings: object) -> None:
    done = child(recipe, template.format(end=END.format(signal="KILL"), **settings))
    assert done.returncode == -signal.SIGKILL, done.stderr
