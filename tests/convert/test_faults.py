"""What goes wrong on the way: full disks, kills, damage. Nothing half-written, nothing lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import GOLDENS

from convert.__main__ import main
from stella_jax import Stella, StellaError
from stella_jax.checkpoint import Checkpoint

STELLA = str(GOLDENS / "stella")


def test_destination_exists(tmp_path: Path, capsys) -> None:
    (tmp_path / "there").mkdir()
    assert main([STELLA, str(tmp_path / "there")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("to", ["flax", "torch"])
def test_disk_full_half_way(to: str, tmp_path: Path, capsys, monkeypatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = "convert.flax_layout.save_leaf" if to == "flax" else "convert.torch_layout.SafetensorsWriter.write"
    monkeypatch.setattr(target, full)
    assert main([STELLA, str(tmp_path / "out"), "--to", to]) == 1
    assert "is full; nothing was kept" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_before_anything_is_written(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 10, 0))
    assert main([STELLA, str(tmp_path / "out")]) == 1
    assert "make room" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_killed_half_way_leaves_nothing_at_the_destination(tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = "import convert.flax_layout as f, time, sys; s = f.save_leaf\n"
    slow += "f.save_leaf = lambda *a: (s(*a), time.sleep(0.5))\n"
    slow += "from convert.__main__ import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", slow, STELLA, str(out)])
    working = tmp_path / ".out.partial"
    deadline = time.monotonic() + 60
    while not (working.exists() and any(working.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists() and working.exists()
    assert main([STELLA, str(out), "--verify"]) == 0
    assert not working.exists()


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise StellaError("tensor x holds NaN or infinity")

    monkeypatch.setattr("convert.flax_layout.copy_side_files", broken)
    assert main([STELLA, str(tmp_path / "out")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_source_is_one_sentence(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("convert: error: ") and error.count("\n") == 1


def test_dry_run_writes_nothing_and_names_every_tensor(tmp_path: Path, capsys) -> None:
    assert main([STELLA, str(tmp_path / "out"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "new.encoder.layer.{0..2}.attention.qkv_proj.weight" in out
    assert "encoder/layers/attention/qkv/kernel" in out and "[3, 64, 3, 4, 16]" in out
    assert "2_Dense_48/linear.weight" in out and "left behind: expected" not in out
    assert list(tmp_path.iterdir()) == []


def test_pickles_and_python_are_left_behind(checkpoint_copy, tmp_path: Path, capsys) -> None:
    source = checkpoint_copy("stella")
    (source / "modeling.py").write_text("raise SystemExit('executed')")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert main([str(source), str(tmp_path / "out"), "--dry-run"]) == 0
    assert "left behind: modeling.py, pytorch_model.bin" in capsys.readouterr().out
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out/modeling.py").exists() and not (tmp_path / "out/pytorch_model.bin").exists()


@pytest.fixture
def flax(tmp_path: Path) -> Path:
    assert main([STELLA, str(tmp_path / "flax")]) == 0
    return tmp_path / "flax"


def test_verify_names_a_flipped_byte(flax: Path, capsys) -> None:
    data = max((p for p in flax.rglob("*") if p.is_file() and "params" in p.parts), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    assert main([STELLA, str(flax), "--verify"]) == 1
    assert "differs: encoder/" in (error := capsys.readouterr().err) or "cannot be read" in error


def test_verify_names_a_changed_side_file(flax: Path, capsys) -> None:
    settings = json.loads((flax / "config_sentence_transformers.json").read_text())
    settings["prompts"]["s2p_query"] = "other: "
    (flax / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert main([STELLA, str(flax), "--verify"]) == 1
    assert "differs: config_sentence_transformers.json" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["no params", "half a checkpoint", "empty provenance", "config of another model"])
def test_a_damaged_converted_directory_is_refused_in_a_sentence(flax: Path, fault: str) -> None:
    if fault == "no params":
        os.rename(flax / "params", flax / "gone")
    elif fault == "half a checkpoint":
        for path in (flax / "params").rglob("_METADATA"):
            path.unlink()
    elif fault == "empty provenance":
        (flax / "provenance.json").write_text("")
    else:
        config = json.loads((flax / "config.json").read_text())
        (flax / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))
    with pytest.raises(StellaError):
        Stella.from_pretrained(flax)


def test_leaves_are_read_one_at_a_time(flax: Path) -> None:
    weights = Checkpoint.open(flax).weights
    assert weights.read("encoder/embeddings/norm/scale").shape == (64,)
