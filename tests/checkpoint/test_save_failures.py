"""`save_pretrained` where it cannot save: refused, or killed; the directory appears complete or not at all."""

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from paths import GOLDENS
from saved import assert_unchanged, files

from stella_jax import EmbeddingModel, Stella, load


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return load(GOLDENS / "stella")


@pytest.mark.parametrize("there", ["directory", "empty directory", "file", "broken link"])
def test_existing_destination(there: str, model: EmbeddingModel, tmp_path: Path, refused) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "broken link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
    if there == "directory":
        (out / "mine").write_text("mine")
    with refused("out"):
        model.save_pretrained(out)
    assert [*tmp_path.iterdir()] == [out] and not (tmp_path / "nowhere").exists()
    assert not out.is_dir() or files(out) == ({"mine": b"mine"} if there == "directory" else {})


def test_parents_are_created(model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path / "a/b/saved")
    assert_unchanged(tmp_path / "a/b/saved", GOLDENS / "stella")
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("here")
    assert files(tmp_path / "here") == files(tmp_path / "a/b/saved")


@pytest.mark.parametrize("name", ["file/saved", "file/below/saved"])
def test_parent_that_is_a_file(name: str, model: EmbeddingModel, tmp_path: Path, refused) -> None:
    (tmp_path / "file").write_text("")
    with refused("file"):
        model.save_pretrained(tmp_path / name)


def test_model_without_source(model: EmbeddingModel, tmp_path: Path, refused) -> None:
    with refused("save_pretrained"):
        model.without_source().save_pretrained(tmp_path / "saved")
    assert not [*tmp_path.iterdir()]


def test_relative_source_after_a_change_of_directory(
    checkpoint_copy: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint_copy("stella")
    monkeypatch.chdir(source.parent)
    model = load("stella")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.save_pretrained("saved")
    assert_unchanged(tmp_path / "elsewhere/saved", source)


@pytest.mark.parametrize("opened", [load, Stella.from_pretrained])
def test_missing_source(opened: Callable, checkpoint_copy: Callable, tmp_path: Path, refused) -> None:
    source = checkpoint_copy("stella")
    model = opened(source)
    shutil.rmtree(source)
    with refused(str(source)):
        model.save_pretrained(tmp_path / "saved")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("opened", [load, Stella.from_pretrained])
def test_source_that_was_replaced(opened: Callable, checkpoint_copy: Callable, tmp_path: Path, refused) -> None:
    source = checkpoint_copy("stella")
    models = [opened(source), opened(source, dim=48)]
    shutil.rmtree(source)
    shutil.copytree(GOLDENS / "arctic-m-v2", source)
    with refused(str(source), "pooling"):
        models[0].save_pretrained(tmp_path / "saved")
    shutil.rmtree(source)
    shutil.copytree(GOLDENS / "stella-finetuned-st6", source)
    with refused(str(source), "heads"):
        models[1].save_pretrained(tmp_path / "saved")
    (source / "modules.json").unlink()
    with refused("modules.json"):
        models[0].save_pretrained(tmp_path / "saved")
    assert [*tmp_path.iterdir()] == [source]


def test_changed_shape(model: EmbeddingModel, tmp_path: Path, refused) -> None:
    other = model.with_params({})
    other.encoder.layers.mlp.up_gate.kernel = nnx.Param(jnp.zeros((3, 64, 2, 64)))
    with refused("up_gate/kernel"):
        other.save_pretrained(tmp_path / "saved")


def test_changed_modules(tmp_path: Path, refused) -> None:
    model = load(GOLDENS / "stella")
    model.normalize = True
    with refused("normalize"):
        model.save_pretrained(tmp_path / "saved")
    model.normalize, model.head = False, None
    with refused("heads"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_parameters_that_are_not_finite(number: float, model: EmbeddingModel, tmp_path: Path, refused) -> None:
    bias = model.params()["head/bias"].at[3].set(number)
    with refused("heads/2_Dense_64/bias"):
        model.with_params({"head/bias": bias}).save_pretrained(tmp_path / "saved")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "call",
    [
        "stella_jax.checkpoint.torch_layout.SafetensorsWriter.write",
        "stella_jax.checkpoint.torch_layout.copy_side_files",
        "stella_jax.checkpoint.save.write_query_prompt",
        "stella_jax.storage.new_directory.sync_directory",
        "pathlib.Path.rename",
    ],
)
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO])
def test_failing_disk(
    call: str, kind: int, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(kind, os.strerror(kind))

    with monkeypatch.context() as patch, refused(str(tmp_path)):
        patch.setattr(call, fails)
        model.save_pretrained(tmp_path / "saved")
    assert not [*tmp_path.iterdir()]
    model.save_pretrained(tmp_path / "saved")
    assert_unchanged(tmp_path / "saved", GOLDENS / "stella")


def test_too_little_space(model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 10, 0))
    with refused(str(tmp_path), varies=True):
        model.save_pretrained(tmp_path / "saved")
    assert not [*tmp_path.iterdir()]


# Saves once without a kill, then repeatedly in child processes, each of which is killed at the next file call; prints
# the number of file calls. A few of them come after the rename of the directory.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.save import save_params

source, out = Path(sys.argv[1]), Path(sys.argv[2])
checkpoint = Checkpoint.open(source)
params = {"encoder/layers/mlp_norm/bias": checkpoint.weights.read("encoder/layers/mlp_norm/bias") + np.float32(0.5)}
save = lambda name: save_params(checkpoint, [checkpoint.spec.head(48)], params, out / name, native=True)
calls, last, parent = 0, -1, os.getpid()

def kill_at_call(event, arguments):
    global calls
    kind = event.split(".")[0]
    if os.getpid() != parent and kind in ("open", "os", "shutil", "fcntl") and str(out) in str(arguments):
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

files = lambda path: {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
save("complete")
complete = files(out / "complete")
sys.addaudithook(kill_at_call)
ended = False
while not ended:
    last += 1
    child = os.fork()
    if not child:
        save("saved")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    ended = code == 0
    saved = out / "saved"
    assert ended <= saved.exists() and (not saved.exists() or files(saved) == complete), last
    if saved.exists():
        saved.rename(out / f"kept-{last}")
    assert {p.name for p in out.iterdir() if not p.name.startswith(("kept", "complete"))} <= {".saved.partial"}, last
assert not (out / ".saved.partial").exists()
print(last)
"""


@pytest.mark.slow
def test_kill_at_every_file_call(tmp_path: Path) -> None:
    """An incomplete directory never has the final name, and the next save succeeds."""
    command = [sys.executable, "-c", KILLED, str(GOLDENS / "stella"), str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 50
    assert load(tmp_path / "complete").dims == (48,)
