"""The driver over stub scripts; with -m nightly, the scripts themselves over a small encoder."""

import re
import sys
from pathlib import Path
from typing import cast

import pytest

from bench import run
from bench.report import read_tables

NIGHTLY = ("memory", *run.DEFAULT, "rerank", "host", "planning")

STUB = "import sys; open(sys.argv[1], 'a').write('## fine\\n\\n| n |\\n| --- |\\n| 1 |\\n\\n')"


def test_failed_script_is_reported_and_others_run(tmp_path, capfd) -> None:
    out = tmp_path / "results.md"
    commands = {"bad": ["-c", "raise SystemExit('no such luck')"], "good": ["-c", STUB, str(out)]}
    assert run.run(commands, out) == ["bad"]
    text = out.read_text()
    assert "## bad: failed" in text and "exit code 1" in text
    assert list(read_tables(text)) == [("fine", [{"n": "1"}])]
    assert "no such luck" in capfd.readouterr().err


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Runs the driver's main where nothing is written but what its stubs write; returns the one file it made."""
    monkeypatch.setattr(run, "device", lambda: ("cpu", "some-cpu"))
    monkeypatch.setattr(run, "write_checkpoint", lambda directory, config: directory)

    def drive(names: list[str], script: str) -> Path:
        stubs = {name: ["-c", script, str(tmp_path / name)] for name in names}
        monkeypatch.setattr(run, "commands", lambda *arguments: stubs)
        monkeypatch.setattr(sys, "argv", ["run.py", *names, "--folder", str(tmp_path / "results")])
        run.main()
        return tmp_path / "results"

    return drive


def test_exit_code_after_a_failure(driver, refused) -> None:
    driver(["limits"], STUB)
    with refused("limits", error=SystemExit) as caught:
        driver(["limits"], "raise SystemExit(3)")
    assert cast(SystemExit, caught.value).code != 0


def test_unknown_name(driver, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        driver(["speed"], STUB)
    assert caught.value.code == 2
    assert "speed" in capsys.readouterr().err.splitlines()[-1]


def test_several_files_a_day(tmp_path) -> None:
    names = []
    for _ in range(3):
        file = run.new_file(tmp_path, "some-gpu")
        file.touch()
        names.append(file.stem[len("2026-01-31") :])
    assert names == ["-some-gpu", "-some-gpu-2", "-some-gpu-3"]


@pytest.mark.parametrize("kind", ["cpu", "accelerator", "small"])
def test_arguments_of_every_script(kind: str, tmp_path) -> None:
    commands = run.commands(list(run.ARGUMENTS), kind, tmp_path / "stella", tmp_path / "out.md")
    for name, command in commands.items():
        assert (run.BENCH.parent / command[0]).is_file()
        assert ("--flax" in command) == (name == "load")
    assert {*run.DEFAULT, *run.OWN_INPUTS} <= set(commands)


def test_every_script_of_numbers_can_be_run() -> None:
    """All that publish a table, except for tpu and gpu, which need other environments."""
    scripts = {
        file.stem for file in run.BENCH.glob("*.py") if re.search(r"^from report .*publish", file.read_text(), re.M)
    }
    assert scripts - {"tpu", "gpu"} == {*run.ARGUMENTS}


@pytest.mark.nightly
@pytest.mark.torch
def test_all_scripts_with_a_small_encoder(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["run.py", "--small", *NIGHTLY, "--folder", str(folder), "--work", str(tmp_path)])
    run.main()
    [results] = folder.glob("*.md")
    titles = {title.split(":")[0] for title, _ in read_tables(results.read_text())}
    assert titles == {*NIGHTLY} - {"host", "planning"}  # their tables are titled as parts of a job
    [picture] = folder.glob("*.svg")
    assert picture.stat().st_size < 60_000
