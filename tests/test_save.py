"""`save_pretrained` of `EmbeddingModel` and `Stella`: all bytes that did not change come back, whole or not at all."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from corruptions import modules
from flax import nnx
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

from convert import to_flax
from stella_jax import EmbeddingModel, Stella, StellaError, load
from stella_jax.checkpoint import Checkpoint

FAMILY = ("stella", "stella-finetuned-st6", "gte-base-en", "gte-large-en", "gte-multilingual", "arctic-m-v2")
FAMILY += ("stella-qwen2", "gte-qwen2")
SETTINGS = "config_sentence_transformers.json"
TEXTS = ["what is tea?", "A drink made of leaves, and a rather long sentence about it.", "x"]
MLP_NORM = "encoder/layers/mlp_norm/bias"


def files(directory: Path) -> dict[str, bytes]:
    names = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("expected")}


def fields(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


def assert_as_it_came(saved: Path, source: Path) -> None:
    """Byte for byte, but for the prompt `query`; without a file that is no side file."""
    came, went = files(source), files(saved)
    if "query" not in fields(source / SETTINGS)["prompts"] and fields(source / SETTINGS)["prompts"]:
        before, after = json.loads(came.pop(SETTINGS)), json.loads(went.pop(SETTINGS))
        assert after.pop("prompts") == before["prompts"] | {"query": before.pop("prompts")["s2p_query"]}
        assert after == before
    went.pop("expected_texts.json", None)
    assert went.keys() == came.keys()
    assert [name for name in came if came[name] != went[name]] == []


def changed(model: EmbeddingModel, *names: str) -> EmbeddingModel:
    params = model.params()
    return model.with_params({name: params[name] + 0.5 for name in names})


# --- what did not change


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_file_comes_back(name: str, dtype: str, tmp_path: Path) -> None:
    load(GOLDENS / name, dtype=dtype, param_dtype=dtype).save_pretrained(tmp_path / "saved")
    assert_as_it_came(tmp_path / "saved", GOLDENS / name)


@pytest.mark.parametrize("name", FAMILY)
def test_every_file_comes_back_from_the_orbax_layout(name: str, tmp_path: Path) -> None:
    to_flax(Checkpoint.open(GOLDENS / name), name, tmp_path / "flax")
    load(tmp_path / "flax").save_pretrained(str(tmp_path / "saved"))
    assert_as_it_came(tmp_path / "saved", GOLDENS / name)


def test_stella_saves_the_same(tmp_path: Path, stella: Stella) -> None:
    stella.save_pretrained(tmp_path / "saved")
    assert_as_it_came(tmp_path / "saved", GOLDENS / "stella")
    again = Stella.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(TEXTS), stella.encode(TEXTS))
    again.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "saved")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_half_precision_keeps_its_bits(dtype: Any, kept: str, checkpoint_copy: Callable, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    for file in (source / "model.safetensors", source / "2_Dense_64/model.safetensors"):
        tensors = {name: tensor.astype(dtype) for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    model = load(source, param_dtype=kept)
    model.save_pretrained(tmp_path / "saved")
    assert_as_it_came(tmp_path / "saved", source)
    changed(model, MLP_NORM).save_pretrained(tmp_path / "changed")
    found = load_file(tmp_path / "changed/model.safetensors")
    assert {str(tensor.dtype) for name, tensor in found.items() if "mlp_ln.bias" in name} == {"float32"}
    assert {tensor.dtype for name, tensor in found.items() if "mlp_ln.bias" not in name} == {np.dtype(dtype)}
    assert fields(tmp_path / "changed/config.json")["torch_dtype"] == "float32"


def in_shards(source: Path) -> list[str]:
    """Rewrites a checkpoint's weights as two files and their index; returns the names of all three."""
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {}
    for i, name in enumerate(names):
        half = dict(list(tensors.items())[i::2])
        save_file(half, source / name, {"format": "pt"})
        weight_map |= dict.fromkeys(half, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    return [*names, "model.safetensors.index.json"]


def test_shards(checkpoint_copy: Callable, tmp_path: Path) -> None:
    """They come back as they were; changed numbers of the same dtype keep the division."""
    source = checkpoint_copy("stella")
    names = in_shards(source)
    model = load(source)
    model.save_pretrained(tmp_path / "saved")
    assert_as_it_came(tmp_path / "saved", source)
    changed(model, MLP_NORM).save_pretrained(tmp_path / "changed")
    assert {*names} <= files(tmp_path / "changed").keys()
    np.testing.assert_array_equal(load(tmp_path / "changed").params()[MLP_NORM], model.params()[MLP_NORM] + 0.5)
    model.save_pretrained(tmp_path / "native", native=True)
    assert not {*names} & files(tmp_path / "native").keys()


# --- what did


@pytest.mark.parametrize("name", ["stella", "gte-multilingual"])
def test_changed_parameters_are_float32_and_only_those(name: str, tmp_path: Path) -> None:
    model = load(GOLDENS / name)
    moved = changed(model, MLP_NORM, "encoder/layers/mlp/down/kernel")
    moved.save_pretrained(tmp_path / "saved")
    before, after = (load_file(path / "model.safetensors") for path in (GOLDENS / name, tmp_path / "saved"))
    assert before.keys() == after.keys()
    ours = [key for key in before if "mlp_ln.bias" in key or "down_proj.weight" in key]
    assert {str(after[key].dtype) for key in ours} == {"float32"}
    for key in before.keys() - {*ours}:
        assert after[key].dtype == before[key].dtype and after[key].tobytes() == before[key].tobytes(), key
    again = load(tmp_path / "saved")
    for key, leaf in moved.params().items():
        np.testing.assert_array_equal(again.params()[key], leaf)
    config = fields(tmp_path / "saved/config.json")
    assert (config["torch_dtype"], config["dtype"]) == ("float32", "float32")
    assert {
        k: v for k, v in fields(GOLDENS / name / "config.json").items() if "dtype" not in k
    }.items() <= config.items()


def test_a_model_on_a_mesh(tmp_path: Path) -> None:
    model = changed(load(GOLDENS / "stella", mesh="data=2,model=4"), "encoder/layers/mlp/down/kernel")
    model.save_pretrained(tmp_path / "saved")
    changed(load(GOLDENS / "stella"), "encoder/layers/mlp/down/kernel").save_pretrained(tmp_path / "alone")
    assert files(tmp_path / "saved") == files(tmp_path / "alone")


def test_another_head_becomes_the_default(tmp_path: Path) -> None:
    moved = changed(load(GOLDENS / "stella", dim=48), "head/bias")
    moved.save_pretrained(tmp_path / "saved")
    listing = json.loads((tmp_path / "saved/modules.json").read_bytes())
    expected = json.loads((GOLDENS / "stella/modules.json").read_bytes())
    assert [module["path"] for module in listing] == ["", "1_Pooling", "2_Dense_48"]
    assert [m | {"path": ""} for m in listing] == [m | {"path": ""} for m in expected]
    again = load(tmp_path / "saved")
    assert again.dims == (48,)
    np.testing.assert_array_equal(again.params()["head/bias"], moved.params()["head/bias"])
    for folder in ("2_Dense_32", "2_Dense_64", "2_Dense_128"):
        assert files(tmp_path / "saved" / folder) == files(GOLDENS / "stella" / folder)


def test_a_head_where_modules_json_named_none(checkpoint_copy: Callable, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    modules("Transformer:", "Pooling:1_Pooling", "Normalize:2_Normalize")(source)
    load(source, dim=32).save_pretrained(tmp_path / "saved")
    listing = json.loads((tmp_path / "saved/modules.json").read_bytes())
    assert [m["path"] for m in listing] == ["", "1_Pooling", "2_Dense_32", "2_Normalize"]
    assert [(m["idx"], m["name"]) for m in listing] == [(i, str(i)) for i in range(4)]
    again = load(tmp_path / "saved")
    assert (again.dims, again.normalize) == ((32,), True)


def test_modules_that_name_the_head_otherwise_keep_their_bytes(checkpoint_copy: Callable, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    modules("Transformer:", "Pooling:1_Pooling/", "Dense:2_Dense_64/")(source)
    load(source).save_pretrained(tmp_path / "saved")
    assert_as_it_came(tmp_path / "saved", source)


def test_more_heads_are_saved_too(tmp_path: Path) -> None:
    stella = Stella.from_pretrained(GOLDENS / "stella", dim=(128, 32))
    changed(stella.model, "more_heads/0/bias").save_pretrained(tmp_path / "saved")
    expected = stella.model.params()["more_heads/0/bias"] + 0.5
    np.testing.assert_array_equal(load(tmp_path / "saved", dim=32).params()["head/bias"], expected)
    assert load(tmp_path / "saved").dims == (128,)


# --- settings of a Stella


@pytest.mark.parametrize("native", [False, True])
def test_the_settings_of_a_stella(native: bool, tmp_path: Path) -> None:
    prompts = {"s2p_query": "search: ", "grüße": "hallo ", "document": "passage: "}
    stella = Stella.from_pretrained(
        GOLDENS / "stella", prompts=prompts, default_prompt_name="s2s_query", similarity_fn_name="manhattan"
    )
    stella.max_seq_length = 20
    stella.save_pretrained(tmp_path / "saved", native=native)
    again = Stella.from_pretrained(tmp_path / "saved")
    assert again.prompts == stella.prompts | {"query": "search: "}
    assert (again.max_seq_length, again.similarity_fn_name) == (20, "manhattan")
    for method in ("encode", "encode_query", "encode_document"):
        ours, theirs = (getattr(model, method)(TEXTS) for model in (stella, again))
        np.testing.assert_array_equal(ours, theirs)
    before, after = (fields(path / SETTINGS) for path in (GOLDENS / "stella", tmp_path / "saved"))
    assert after["__version__"] == before["__version__"]


def test_a_similarity_that_was_set(tmp_path: Path) -> None:
    stella = Stella.from_pretrained(GOLDENS / "arctic-m-v2")
    stella.similarity_fn_name = "dot"
    stella.save_pretrained(tmp_path / "saved")
    before, after = (fields(path / SETTINGS) for path in (GOLDENS / "arctic-m-v2", tmp_path / "saved"))
    assert after == before | {"similarity_fn_name": "dot"}


def test_settings_where_the_checkpoint_has_no_files_for_them(checkpoint_copy: Callable, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    for name in (SETTINGS, "sentence_bert_config.json", "tokenizer_config.json"):
        (source / name).unlink()
    stella = Stella.from_pretrained(source, prompts={"query": "q: "})
    stella.max_seq_length = 20
    stella.save_pretrained(tmp_path / "saved")
    again = Stella.from_pretrained(tmp_path / "saved")
    assert (again.prompts, again.max_seq_length) == ({"query": "q: "}, 20)
    assert not (tmp_path / "saved/sentence_bert_config.json").exists()


# --- what others read


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "moved"),
    [
        *((name, MLP_NORM) for name in ("stella", "stella-finetuned-st6", "gte-base-en", "gte-multilingual")),
        ("arctic-m-v2", MLP_NORM),
        ("stella-qwen2", "encoder/norm/scale"),
        ("gte-qwen2", "encoder/layers/attention/k/bias"),
    ],
)
def test_sentence_transformers_reads_the_native_form(name: str, moved: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = changed(load(GOLDENS / name), moved)
    model.save_pretrained(tmp_path / "saved", native=True)
    ours = Stella.from_pretrained(tmp_path / "saved")
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    scale = np.abs(ours.encode(TEXTS)).max()
    np.testing.assert_allclose(theirs.encode(TEXTS), ours.encode(TEXTS), atol=1e-5 * max(scale, 1), rtol=0)


@pytest.mark.torch
def test_transformers_reads_the_native_form(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    model = load(GOLDENS / "stella")
    model.save_pretrained(tmp_path / "saved", native=True)
    ids = np.random.default_rng(0).integers(5, 2048, (2, 12))
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(tmp_path / "saved").eval()(torch.tensor(ids)).last_hidden_state.numpy()
    ours, _ = model.encoder(jnp.asarray(ids), jnp.array([12, 12]))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


@pytest.mark.torch
def test_sentence_transformers_reads_the_settings_of_a_stella(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    stella = Stella.from_pretrained(
        GOLDENS / "stella", dim=48, prompts={"s2p_query": "search: "}, similarity_fn_name="dot"
    )
    stella.max_seq_length = 20
    stella.save_pretrained(tmp_path / "saved", native=True)
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    assert (theirs.max_seq_length, theirs.similarity_fn_name) == (20, "dot")
    assert stella.prompts.items() <= theirs.prompts.items()
    for method in ("encode", "encode_query", "encode_document"):
        ours, others = (getattr(model, method)([*TEXTS, "word " * 50]) for model in (stella, theirs))
        np.testing.assert_allclose(ours, others, atol=1e-4, rtol=0)


# --- where it cannot


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return load(GOLDENS / "stella")


def refused(model: EmbeddingModel | Stella, destination: Path, match: str) -> None:
    with pytest.raises(StellaError, match=match) as caught:
        model.save_pretrained(destination)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("there", ["directory", "empty directory", "file", "dangling link"])
def test_what_exists_is_left_alone(there: str, model: EmbeddingModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
    if there == "directory":
        (out / "mine").write_text("mine")
    refused(model, out, "exists already")
    assert [*tmp_path.iterdir()] == [out] and not (tmp_path / "nowhere").exists()
    assert not out.is_dir() or files(out) == ({"mine": b"mine"} if there == "directory" else {})


def test_parents_are_made(model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save_pretrained(tmp_path / "a/b/saved")
    assert_as_it_came(tmp_path / "a/b/saved", GOLDENS / "stella")
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("here")
    assert files(tmp_path / "here") == files(tmp_path / "a/b/saved")


def test_a_parent_that_is_a_file(model: EmbeddingModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(model, tmp_path / "file/saved", "file.* cannot be written")
    refused(model, tmp_path / "file/below/saved", "file.* cannot be written")


def test_a_model_from_nowhere(model: EmbeddingModel, tmp_path: Path) -> None:
    refused(model.without_source(), tmp_path / "saved", "was not loaded from a checkpoint")
    assert not [*tmp_path.iterdir()]


def test_a_relative_source_and_another_working_directory(
    checkpoint_copy: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint_copy("stella")
    monkeypatch.chdir(source.parent)
    model = load("stella")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.save_pretrained("saved")
    assert_as_it_came(tmp_path / "elsewhere/saved", source)


@pytest.mark.parametrize("opened", [load, Stella.from_pretrained])
def test_a_source_that_is_gone(opened: Callable, checkpoint_copy: Callable, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    model = opened(source)
    shutil.rmtree(source)
    refused(model, tmp_path / "saved", f"{source}.* is gone")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("opened", [load, Stella.from_pretrained])
def test_a_source_that_is_another_by_now(opened: Callable, checkpoint_copy: Callable, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    models = [opened(source), opened(source, dim=48)]
    shutil.rmtree(source)
    shutil.copytree(GOLDENS / "arctic-m-v2", source)
    refused(models[0], tmp_path / "saved", f"{source}: its pooling does not fit")
    shutil.rmtree(source)
    shutil.copytree(GOLDENS / "stella-finetuned-st6", source)
    refused(models[1], tmp_path / "saved", f"{source}: its heads does not fit")
    (source / "modules.json").unlink()
    refused(models[0], tmp_path / "saved", "modules.json is missing")
    assert [*tmp_path.iterdir()] == [source]


def test_other_shapes(model: EmbeddingModel, tmp_path: Path) -> None:
    other = model.with_params({})
    other.encoder.layers.mlp.up_gate.kernel = nnx.Param(jnp.zeros((3, 64, 2, 64)))
    refused(other, tmp_path / "saved", "up_gate/kernel does not fit")


def test_other_settings(tmp_path: Path) -> None:
    model = load(GOLDENS / "stella")
    model.normalize = True
    refused(model, tmp_path / "saved", "normalize does not fit")
    model.normalize, model.head = False, None
    refused(model, tmp_path / "saved", "heads does not fit")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_no_reader_would_take(number: float, model: EmbeddingModel, tmp_path: Path) -> None:
    bias = model.params()["head/bias"].at[3].set(number)
    refused(model.with_params({"head/bias": bias}), tmp_path / "saved", "heads/2_Dense_64/bias holds NaN or infinity")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "call",
    [
        "stella_jax.torch_layout.SafetensorsWriter.write",
        "stella_jax.torch_layout.copy_side_files",
        "stella_jax.save.write_query_prompt",
        "stella_jax.storage.new_directory.sync_directory",
        "pathlib.Path.rename",
    ],
)
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails(
    call: str, kind: int, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(kind, os.strerror(kind))

    with monkeypatch.context() as patch:
        patch.setattr(call, fails)
        said = "is full; nothing was kept" if kind == errno.ENOSPC else "cannot be written: Input/output error"
        refused(model, tmp_path / "saved", said)
    assert not [*tmp_path.iterdir()]
    model.save_pretrained(tmp_path / "saved")
    assert_as_it_came(tmp_path / "saved", GOLDENS / "stella")


def test_too_little_space(model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 10, 0))
    refused(model, tmp_path / "saved", "make room")
    assert not [*tmp_path.iterdir()]


# Saves once whole, then again and again in a child of its own, killed at one file call after the other; prints how many
# there are. The call that gives the directory its name is the last but those that follow it.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from stella_jax.checkpoint import Checkpoint
from stella_jax.save import save_params

source, out = Path(sys.argv[1]), Path(sys.argv[2])
checkpoint = Checkpoint.open(source)
params = {"encoder/layers/mlp_norm/bias": checkpoint.weights.read("encoder/layers/mlp_norm/bias") + np.float32(0.5)}
save = lambda name: save_params(checkpoint, [checkpoint.spec.head(48)], params, out / name, native=True)
calls, last, parent = 0, -1, os.getpid()

def strike(event, arguments):
    global calls
    kind = event.split(".")[0]
    if os.getpid() != parent and kind in ("open", "os", "shutil", "fcntl") and str(out) in str(arguments):
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

files = lambda path: {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
save("whole")
whole = files(out / "whole")
sys.addaudithook(strike)
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
    assert ended <= saved.exists() and (not saved.exists() or files(saved) == whole), last
    if saved.exists():
        saved.rename(out / f"kept-{last}")
    assert {p.name for p in out.iterdir() if not p.name.startswith(("kept", "whole"))} <= {".saved.partial"}, last
assert not (out / ".saved.partial").exists()
print(last)
"""


def test_a_kill_at_any_file_call(tmp_path: Path) -> None:
    """Nothing half-written has the name, and the next save works whatever the last one left."""
    command = [sys.executable, "-c", KILLED, str(GOLDENS / "stella"), str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 50
    assert load(tmp_path / "whole").dims == (48,)
