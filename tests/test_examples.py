"""The examples run and do what they say."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from marks import nightly, slow

from stella_jax import load

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str, **constants: int):
    """The module, with other constants than it has."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for constant, value in constants.items():
        assert hasattr(module, constant)
        setattr(module, constant, value)
    return module


def all_steps(number: int, *, quick: int) -> pytest.MarkDecorator:
    """Runs a test with a few of an example's steps in `make slow`, and with all of them in `make nightly`."""
    return pytest.mark.parametrize("steps", [*slow(quick), *nightly(number)])


@pytest.mark.slow
def test_custom_loop(tmp_path, capsys, monkeypatch) -> None:
    """On two of the simulated devices: eight would take four times as long on two cores."""
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    example("custom_loop").main(str(tmp_path / "trained"))
    *steps, said = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[2]) for line in steps]
    assert len(losses) == 20 and losses[-1] < 0.1 * losses[0]
    assert said == "11 of 11 anchors are nearer to their positive than to their negative"
    before, after = load("tiny", dim=64).params(), load(tmp_path / "trained").params()
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("encoder/embeddings/word")}


@all_steps(10, quick=2)
def test_own_loss(tmp_path, capsys, monkeypatch, steps) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    example("own_loss", EPOCHS=steps).main(str(tmp_path / "run"))
    said = capsys.readouterr().out
    before, after = map(float, re.findall(r"cosine_accuracy (\S+) before and (\S+) after", said)[0])
    assert before < 0.6 and (after > 0.8 or steps < 10)


@pytest.mark.nightly
def test_distill(tmp_path, capsys) -> None:
    example("distill").main(str(tmp_path))
    before, after = map(float, re.findall(r"teachers: (\S+) before, (\S+) after", capsys.readouterr().out)[0])
    assert after < 0.5 * before


@all_steps(20, quick=4)
def test_lora(tmp_path, capsys, steps) -> None:
    """Checks its output, and that the merged checkpoint contains the adapters."""
    example("lora", STEPS=steps).main(str(tmp_path / "out"))
    first, *lines, said = capsys.readouterr().out.splitlines()
    trained, total = (int(word.replace(",", "")) for word in (first.split()[0], first.split()[2]))
    assert 0 < trained < 0.02 * total
    losses = [float(line.split()[2]) for line in lines]
    assert len(losses) == steps and losses[-1] < (0.5 if steps == 20 else 1) * losses[0]
    before, after = map(int, re.findall(r"negative: (\d+) of 11 before, (\d+) after", said)[0])
    assert before < 9 and (after >= 9 or steps < 20)
    old, new = load("tiny", dim=64).params(), load(tmp_path / "out/merged").params()
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {"encoder/layers/attention/qkv/kernel", "encoder/layers/mlp/down/kernel"}
    assert (tmp_path / "out/adapter/adapter_config.json").exists()


def test_examples_are_short() -> None:
    assert all(len(path.read_text().splitlines()) <= 61 for path in EXAMPLES.glob("*.py"))


@all_steps(40, quick=2)
def test_mine_then_train(tmp_path, capsys, steps) -> None:
    mining = example("mine_then_train", STEPS=steps)
    mining.main(str(tmp_path / "out"))
    *mined, said = capsys.readouterr().out.splitlines()
    assert mined[0].startswith("33 negatives for 11 anchors of 11 pairs")
    loss, before, after = (float(said.split()[word].rstrip(";")) for word in (1, 5, 9))
    assert before <= after and (steps < 40 or (loss < 1 and before < after == 11))
    with pytest.raises(SystemExit, match="already exists"):
        mining.main(str(tmp_path / "out"))
