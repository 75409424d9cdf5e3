"""Converter, trainer and export are killed at any call and moment: no output is half-written, and the repeated command
writes the same bytes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import KILLS, environment
from marks import nightly
from paths import GOLDENS

from stella_jax.checkpoint.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

RECIPE = """
model = "tiny"
dim = 32
output = "absent"
[data]
train = "{rows}"
eval = "{rows}"
max_length = 8
[loop]
batch_size = 4
epochs = 1
save_every = 1
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xla")


@pytest.fixture
def kill(tmp_path: Path, compiled: Path, tell) -> Callable[..., list[Path]]:
    def kill(*command: str, kills: int = KILLS, seed: int = 0) -> list[Path]:
        """Outputs of a command that was killed and repeated until it finished; first those of undisturbed runs."""
        script = str(Path(__file__).parents[1] / "kill_repeatedly.py")
        arguments = [sys.executable, script, str(tmp_path), str(kills), str(seed), *command]
        ended = subprocess.run(arguments, env=environment(compiled), capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        found = json.loads(ended.stdout.splitlines()[-1])
        tell(f"{command[0]}: {found}")
        return [tmp_path / f"out-{i}" for i in range(found["ended"])]

    return kill


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def leaves(folder: Path) -> dict[str, bytes]:
    """Contents of a Flax directory by parameter; the names of Orbax's files vary."""
    weights = Checkpoint.open(folder).weights
    side = {name: content for name, content in files(folder).items() if not name.startswith("params/")}
    return side | {path: weights.read(path).tobytes() for path in weights.leaves}


@pytest.mark.parametrize("to", ["flax", *nightly("torch", "transformers")])
def test_conversion(kill, tmp_path: Path, to: str):
    whole, *others = kill("convert", str(GOLDENS / "stella"), "OUT", "--to", to)
    content = leaves if to == "flax" else files
    assert all(content(out) == content(whole) for out in others)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows, path = tmp_path / "rows.jsonl", tmp_path / "recipe.toml"
    words = ["fog", "law", "owl", "sea", "ink", "jam", "elm", "oak"]
    triplets = [{"anchor": f"a {word}", "positive": f"one {word}", "negative": f"no {word}"} for word in words]
    rows.write_text("".join(json.dumps(row) + "\n" for row in triplets))
    path.write_text(RECIPE.format(rows=rows))
    return path


def result(run: Path) -> tuple[list[dict], dict[str, bytes]]:
    """Metrics without times, and exported files."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line | {"tokens_per_second": 0} for line in lines], files(run / "export")


def check_runs(whole: Path, others: list[Path]) -> None:
    assert all(result(run) == result(whole) for run in others)
    left = {path.name for run in others for path in run.iterdir()}
    assert left == {path.name for path in whole.iterdir()}


@pytest.mark.nightly
def test_training(kill, recipe: Path):
    whole, *others = kill("train", str(recipe), "--set", "output=OUT")
    check_runs(whole, others)


@pytest.mark.nightly
def test_export(kill, recipe: Path, tmp_path: Path):
    """The export alone: runs start at their last step."""
    ended, again = kill("train", str(recipe), "--set", "output=OUT", kills=0)
    shutil.rmtree(again)
    shutil.rmtree(ended / "export")
    ended.rename(tmp_path / "start")
    whole, *others = kill("train", str(recipe), "--set", "output=OUT")
    check_runs(whole, others)
