"""Every code block of the guides runs, and prints what the page says that it prints."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from marks import slow
from pages import DOCS, PAGES, README, ROOT, Block, blocks_of

from stella_jax.cli.main import main
from train.recipe import recipe_of

RUN = ("bash", "python")
SHOWN = ("toml", "json", "text")

# "in 5.1 s (58.8 texts/s, 5154 tokens/s)"
TIMES = re.compile(r"in [\d.]+ s \(.*?\)")

# Pages that train, which takes half a minute.
TRAINING = (README, DOCS / "fine-tune.md")

# A recipe that a page's `toml` block is added to.
RECIPE = {"model": "tiny", "output": "runs/page", "data": {"train": "train.jsonl"}}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A directory with the files of a clone that the guides use; pages follow each other in it, as a reader would."""
    path = tmp_path_factory.mktemp("clone")
    (path / "examples").symlink_to(ROOT / "examples")
    (path / "train").symlink_to(ROOT / "train")
    return path


@pytest.fixture
def folder(clone: Path, monkeypatch) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "page",
    [*slow(*TRAINING), *(page for page in PAGES if page not in TRAINING)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_blocks_run(page):
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page):
        try:
            if not block.is_run:
                check_syntax(block)
            elif block.language in RUN:
                printed = run_bash(block) if block.language == "bash" else run_python(block, names)
                assert block.output is None or matches(block.output, printed), f"printed:\n{printed}"
            else:
                check_shown(block)
        except Exception as error:
            error.add_note(f"in {block.place}")
            raise


def check_syntax(block: Block) -> None:
    if block.language == "python":
        compile(block.text, block.place, "exec")
    elif block.language == "bash":
        found = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        check_commands(block)
    else:
        assert block.language in SHOWN, f"unknown language {block.language!r}"


def check_shown(block: Block) -> None:
    """A recipe, whole or in part, or lines of JSON."""
    assert block.language in ("toml", "json"), f"unknown language {block.language!r}"
    if block.language == "json":
        assert all(json.loads(line) for line in block.text.splitlines())
        return
    tree = tomllib.loads(block.text)
    data = tree.get("data", {})
    data = data if "sets" in data else RECIPE["data"] | data
    recipe_of(RECIPE | tree | {"data": data}, block.place)


def run_python(block: Block, names: dict[str, Any]) -> str:
    code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def run_bash(block: Block) -> str:
    printed = "".join(run_command(command, block) for command in commands_of(block))
    is_error = ": error: " in printed
    assert is_error == (": error: " in (block.output or "")), printed
    return printed


def commands_of(block: Block) -> list[str]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def run_command(command: str, block: Block) -> str:
    """What a line prints; our own commands run in this process, which has JAX loaded."""
    words = shlex.split(command, comments=True)
    if words[0] == "stella-jax":
        with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
            code = main(words[1:])
        assert code == (": error: " in printed.getvalue()), printed.getvalue()
        return printed.getvalue()
    if is_tested_elsewhere(words):
        return ""
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{command}: {found.stderr}"
    return found.stdout


def is_tested_elsewhere(words: list[str]) -> bool:
    """Whether this runs an example, which has a test of its own."""
    if words[0] != "python" or not words[1].startswith("examples/"):
        return False
    tests = (ROOT / "tests" / "test_examples.py").read_text()
    assert f"def test_{Path(words[1]).stem}(" in tests, f"{words[1]} has no test in test_examples.py"
    return True


def check_commands(block: Block) -> None:
    """Of a block that is not run: options of our commands are known, and targets and scripts are there."""
    for command in commands_of(block):
        for target in re.findall(r"\bmake ([a-z-]+)", command):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {target}"
        for path in re.findall(r"(?<!\S)(?:examples|train)/[\w/.-]+", command):
            assert (ROOT / path).exists(), f"{path}: file not found"


def matches(expected: str, printed: str) -> bool:
    """Whether this was printed, where `...` stands for anything, lines of it too, and times may differ."""
    expected = TIMES.sub("in ... s (...)", expected.replace("…", "..."))
    pattern = r"\s*".join(".*?".join(map(re.escape, line.split("..."))) for line in expected.strip().splitlines())
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def test_matching():
    assert matches("a ... c\nd\n", "a b c\nd\n")
    assert matches("a\n...\nd", "a\nb\nc\nd")
    assert matches("10 tokens in 5.1 s (2 texts/s)", "10 tokens in 6.0 s (1 texts/s)")
    assert not matches("a\nb", "a\nc")
    assert not matches("a", "a\nb")
