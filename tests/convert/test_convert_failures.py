"""Conversions with full disks, kills and damaged files: no partial output, and no data lost."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from paths import GOLDENS

from convert.__main__ import main
from stella_jax import Stella, StellaError
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.storage.new_directory import new_directory

STELLA = str(GOLDENS / "stella")


def test_destination_exists(tmp_path: Path, capsys, check_message) -> None:
    (tmp_path / "there").mkdir()
    assert main([STELLA, str(tmp_path / "there")]) == 1
    check_message(capsys.readouterr().err, "there")
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("to", ["flax", "torch"])
def test_disk_full_in_the_middle(to: str, tmp_path: Path, capsys, monkeypatch, check_message) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = (
        "convert.flax_layout.save_leaf"
        if to == "flax"
        else "stella_jax.checkpoint.torch_layout.SafetensorsWriter.write"
    )
    monkeypatch.setattr(target, full)
    assert main([STELLA, str(tmp_path / "out"), "--to", to]) == 1
    check_message(capsys.readouterr().err, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_too_little_space(tmp_path: Path, capsys, monkeypatch, check_message) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 10, 0))
    assert main([STELLA, str(tmp_path / "out")]) == 1
    check_message(capsys.readouterr().err, str(tmp_path), varies=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_kill_leaves_no_destination(tmp_path: Path) -> None:
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


def test_write_error_is_one_sentence(tmp_path: Path, check_message) -> None:
    """No file may grow beyond 64 KiB, so Orbax's writers fail in their own threads."""
    script = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
    script += "from convert.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, STELLA, str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    check_message(process.stderr, f"convert: error: {tmp_path}/out")
    assert list(tmp_path.iterdir()) == []


def test_second_run_does_not_disturb_the_first(tmp_path: Path, capsys, check_message) -> None:
    with new_directory(tmp_path / "out", 0) as working:
        (working / "half").write_text("")
        assert main([STELLA, str(tmp_path / "out")]) == 1
        check_message(capsys.readouterr().err, ".out.partial")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["half"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("to", ["torch", "transformers"])
def test_module_path_cannot_lead_out_of_the_destination(
    to: str, checkpoint_copy, tmp_path: Path, capsys, check_message
) -> None:
    source = checkpoint_copy("stella")
    modules = json.loads((source / "modules.json").read_text())
    modules[2]["path"] = f"../{source.name}/{modules[2]['path']}"
    (source / "modules.json").write_text(json.dumps(modules))
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert main([str(source), str(tmp_path / "out"), "--to", to]) == 1
    check_message(capsys.readouterr().err, f"../{source.name}")
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert not (tmp_path / "out").exists()


def test_reader_of_the_table_may_leave(tmp_path: Path) -> None:
    command = f"{sys.executable} -m convert {STELLA} {tmp_path}/out --dry-run | true"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert process.stderr == ""


def test_failed_conversion_leaves_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise StellaError("x: holds NaN or infinity.")

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
    assert "2_Dense_48/linear.weight" in out and "not copied: expected" not in out
    assert list(tmp_path.iterdir()) == []


def test_pickles_and_python_are_not_copied(checkpoint_copy, tmp_path: Path, capsys) -> None:
    source = checkpoint_copy("stella")
    (source / "modeling.py").write_text("raise SystemExit('executed')")
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert main([str(source), str(tmp_path / "out"), "--dry-run"]) == 0
    assert "not copied: modeling.py, pytorch_model.bin" in capsys.readouterr().out
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out/modeling.py").exists() and not (tmp_path / "out/pytorch_model.bin").exists()


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undamaged") / "flax"
    assert main([STELLA, str(out)]) == 0
    return out


@pytest.fixture
def flax(undamaged: Path, tmp_path: Path) -> Path:
    return shutil.copytree(undamaged, tmp_path / "flax")


def test_verify_names_a_flipped_byte(flax: Path, capsys) -> None:
    data = max((p for p in flax.rglob("*") if p.is_file() and "params" in p.parts), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    assert main([STELLA, str(flax), "--verify"]) == 1
    assert "encoder" in capsys.readouterr().err  # the wording depends on which byte it is


def test_verify_names_a_changed_side_file(flax: Path, capsys, check_message) -> None:
    settings = json.loads((flax / "config_sentence_transformers.json").read_text())
    settings["prompts"]["s2p_query"] = "other: "
    (flax / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert main([STELLA, str(flax), "--verify"]) == 1
    check_message(capsys.readouterr().err, "config_sentence_transformers.json")


@pytest.mark.parametrize("fault", ["no params", "half a checkpoint", "empty provenance", "config of another model"])
def test_damaged_converted_directory(flax: Path, fault: str) -> None:
    if fault == "no params":
        os.rename(flax / "params", flax / "gone")
    elif fault == "half a checkpoint":
        for path in (flax / "params").rglob(".zarray"):
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


def test_provenance_cannot_lead_out_of_the_destination(flax: Path, tmp_path: Path, capsys, check_message) -> None:
    provenance = json.loads((flax / "provenance.json").read_text())
    # A name in the root of the file system, the only other folder that "" could mean.
    provenance["headers"]["/stella-jax-test.safetensors"] = provenance["headers"].pop("model.safetensors")
    (flax / "provenance.json").write_text(json.dumps(provenance))
    assert main([str(flax), str(tmp_path / "out"), "--to", "torch"]) == 1
    check_message(capsys.readouterr().err, "/stella-jax-test.safetensors")
    assert not Path("/stella-jax-test.safetensors").exists()


@pytest.mark.parametrize("key", ["leaves", "files", "headers"])
def test_provenance_with_other_types(flax: Path, key: str, capsys, check_message) -> None:
    provenance = json.loads((flax / "provenance.json").read_text())
    (flax / "provenance.json").write_text(json.dumps(provenance | {key: {"x": 1}}))
    assert main([STELLA, str(flax), "--verify"]) == 1
    check_message(capsys.readouterr().err, "provenance.json", key)


def test_verify_of_a_native_conversion_allows_only_the_query_prompt(tmp_path: Path, capsys, check_message) -> None:
    arguments = [STELLA, str(tmp_path / "native"), "--to", "transformers", "--verify"]
    assert main(arguments) == 0
    path = tmp_path / "native/config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    for changes in ({"prompts": settings["prompts"] | {"query": "other"}}, {"default_prompt_name": "query"}):
        path.write_text(json.dumps(settings | changes))
        assert main(arguments) == 1
        check_message(capsys.readouterr().err, "config_sentence_transformers.json")


def test_verify_names_a_changed_record_of_a_source_file(flax: Path, capsys, check_message) -> None:
    provenance = json.loads((flax / "provenance.json").read_text())
    provenance["headers"]["model.safetensors"] = provenance["headers"]["model.safetensors"].replace('"pt"', '"qt"')
    (flax / "provenance.json").write_text(json.dumps(provenance))
    assert main([STELLA, str(flax), "--verify"]) == 1
    check_message(capsys.readouterr().err, "model.safetensors")


def test_verify_names_a_flipped_byte_in_a_header(flax: Path, tmp_path: Path, capsys, check_message) -> None:
    """Readers of the tensors do not notice it, but PyTorch's loader refuses it."""
    torch = tmp_path / "torch"
    assert main([str(flax), str(torch), "--to", "torch", "--verify"]) == 0
    raw = (torch / "model.safetensors").read_bytes()
    (torch / "model.safetensors").write_bytes(raw.replace(b'"format":"pt"', b'"format":"qt"', 1))
    assert main([str(flax), str(torch), "--to", "torch", "--verify"]) == 1
    check_message(capsys.readouterr().err, "model.safetensors")


def test_damaged_checkpoint_is_one_sentence(flax: Path) -> None:
    leaf = flax / "params/state/encoder.embeddings.norm.scale/.zarray"
    leaf.write_bytes(leaf.read_bytes()[:-1] + b"?")
    command = [sys.executable, "-m", "convert", str(flax), str(flax.parent / "out"), "--to", "torch"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("convert: error: ") and process.stderr.count("\n") == 1
