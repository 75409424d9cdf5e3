"""The examples run, and do what they say."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np

from stella_jax import load

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_custom_loop(tmp_path, capsys, monkeypatch) -> None:
    """Over two of the simulated devices: on two cores eight would take four times as long."""
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    example("custom_loop").main(str(tmp_path / "trained"))
    *steps, said = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[2]) for line in steps]
    assert len(losses) == 20 and losses[-1] < 0.1 * losses[0]
    assert said == "11 of 11 anchors are nearer to their positive than to their negative"
    before, after = load("tiny", dim=64).params(), load(tmp_path / "trained").params()
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("encoder/embeddings/word")}


def test_own_loss(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example("own_loss").main(str(tmp_path / "run"))
    said = capsys.readouterr().out
    before, after = map(float, re.findall(r"cosine_accuracy (\S+) before and (\S+) after", said)[0])
    assert before < 0.6 and after > 0.8


def test_distil(tmp_path, capsys) -> None:
    example("distil").main(str(tmp_path))
    before, after = map(float, re.findall(r"teachers: (\S+) before, (\S+) after", capsys.readouterr().out)[0])
    assert after < 0.5 * before


def test_examples_are_short() -> None:
    assert all(len(path.read_text().splitlines()) < 60 for path in EXAMPLES.glob("*.py"))
