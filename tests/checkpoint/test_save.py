"""`save_pretrained` of `EmbeddingModel` and `Stella`: unchanged files keep all bytes, changed ones are rewritten."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from corruptions import modules
from marks import nightly
from paths import GOLDENS
from safetensors.numpy import load_file, save_file
from saved import SETTINGS, assert_unchanged, changed, fields, files

from convert import to_flax
from stella_jax import Stella, load
from stella_jax.checkpoint.checkpoint import Checkpoint

FAMILY = ("stella", "stella-finetuned-st6", "gte-base-en", "gte-large-en", "gte-multilingual", "arctic-m-v2")
FAMILY += ("stella-qwen2", "gte-qwen2")
TEXTS = ["what is tea?", "A drink made of leaves, and a rather long sentence about it.", "x"]
MLP_NORM = "encoder/layers/mlp_norm/bias"


# --- unchanged parameters


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unchanged_files(name: str, dtype: str, tmp_path: Path) -> None:
    load(GOLDENS / name, dtype=dtype, param_dtype=dtype).save_pretrained(tmp_path / "saved")
    assert_unchanged(tmp_path / "saved", GOLDENS / name)


QUICK = ("stella", "gte-multilingual", "stella-qwen2")


@pytest.mark.parametrize("name", [*QUICK, *nightly(*(name for name in FAMILY if name not in QUICK))])
def test_unchanged_files_from_the_flax_layout(name: str, tmp_path: Path) -> None:
    to_flax(Checkpoint.open(GOLDENS / name), name, tmp_path / "flax")
    load(tmp_path / "flax").save_pretrained(str(tmp_path / "saved"))
    assert_unchanged(tmp_path / "saved", GOLDENS / name)


def test_stella_saves_the_same(tmp_path: Path, stella: Stella) -> None:
    stella.save_pretrained(tmp_path / "saved")
    assert_unchanged(tmp_path / "saved", GOLDENS / "stella")
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
    assert_unchanged(tmp_path / "saved", source)
    changed(model, MLP_NORM).save_pretrained(tmp_path / "changed")
    found = load_file(tmp_path / "changed/model.safetensors")
    assert {str(tensor.dtype) for name, tensor in found.items() if "mlp_ln.bias" in name} == {"float32"}
    assert {tensor.dtype for name, tensor in found.items() if "mlp_ln.bias" not in name} == {np.dtype(dtype)}
    assert fields(tmp_path / "changed/config.json")["torch_dtype"] == "float32"


def in_shards(source: Path) -> list[str]:
    """Rewrites a checkpoint's weights as two shards and their index; returns the names of all three."""
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
    """Shards keep their bytes; changed parameters of the same dtype keep the division into shards."""
    source = checkpoint_copy("stella")
    names = in_shards(source)
    model = load(source)
    model.save_pretrained(tmp_path / "saved")
    assert_unchanged(tmp_path / "saved", source)
    changed(model, MLP_NORM).save_pretrained(tmp_path / "changed")
    assert {*names} <= files(tmp_path / "changed").keys()
    np.testing.assert_array_equal(load(tmp_path / "changed").params()[MLP_NORM], model.params()[MLP_NORM] + 0.5)
    model.save_pretrained(tmp_path / "native", native=True)
    assert not {*names} & files(tmp_path / "native").keys()


# --- changed parameters


@pytest.mark.parametrize("name", ["stella", "gte-multilingual"])
def test_only_changed_parameters_become_float32(name: str, tmp_path: Path) -> None:
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


def test_model_on_a_mesh(tmp_path: Path) -> None:
    model = changed(load(GOLDENS / "stella", mesh="data=2,model=4"), "encoder/layers/mlp/down/kernel")
    model.save_pretrained(tmp_path / "saved")
    changed(load(GOLDENS / "stella"), "encoder/layers/mlp/down/kernel").save_pretrained(tmp_path / "one-device")
    assert files(tmp_path / "saved") == files(tmp_path / "one-device")


def test_chosen_head_becomes_the_default(tmp_path: Path) -> None:
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


def test_head_that_modules_json_does_not_name(checkpoint_copy: Callable, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    modules("Transformer:", "Pooling:1_Pooling", "Normalize:2_Normalize")(source)
    load(source, dim=32).save_pretrained(tmp_path / "saved")
    listing = json.loads((tmp_path / "saved/modules.json").read_bytes())
    assert [m["path"] for m in listing] == ["", "1_Pooling", "2_Dense_32", "2_Normalize"]
    assert [(m["idx"], m["name"]) for m in listing] == [(i, str(i)) for i in range(4)]
    again = load(tmp_path / "saved")
    assert (again.dims, again.normalize) == ((32,), True)


def test_modules_json_with_slashes_keeps_its_bytes(checkpoint_copy: Callable, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    modules("Transformer:", "Pooling:1_Pooling/", "Dense:2_Dense_64/")(source)
    load(source).save_pretrained(tmp_path / "saved")
    assert_unchanged(tmp_path / "saved", source)


def test_more_heads(tmp_path: Path) -> None:
    stella = Stella.from_pretrained(GOLDENS / "stella", dim=(128, 32))
    changed(stella.model, "more_heads/0/bias").save_pretrained(tmp_path / "saved")
    expected = stella.model.params()["more_heads/0/bias"] + 0.5
    np.testing.assert_array_equal(load(tmp_path / "saved", dim=32).params()["head/bias"], expected)
    assert load(tmp_path / "saved").dims == (128,)


# --- settings


@pytest.mark.parametrize("native", [False, True])
def test_settings_of_a_stella(native: bool, tmp_path: Path) -> None:
    prompts = {"s2p_query": "search: ", "grüße": "hallo ", "document": "passage: "}
    stella = Stella.from_pretrained(
        GOLDENS / "stella", prompts=prompts, default_prompt_name="s2s_query", similarity_fn_name="manhattan"
    )
    stella.max_seq_length = 24
    stella.save_pretrained(tmp_path / "saved", native=native)
    again = Stella.from_pretrained(tmp_path / "saved")
    assert again.prompts == stella.prompts | {"query": "search: "}
    assert (again.max_seq_length, again.similarity_fn_name) == (24, "manhattan")
    for method in ("encode", "encode_query", "encode_document"):
        ours, theirs = (getattr(model, method)(TEXTS) for model in (stella, again))
        np.testing.assert_array_equal(ours, theirs)
    before, after = (fields(path / SETTINGS) for path in (GOLDENS / "stella", tmp_path / "saved"))
    assert after["__version__"] == before["__version__"]


def test_changed_similarity(tmp_path: Path) -> None:
    stella = Stella.from_pretrained(GOLDENS / "arctic-m-v2")
    stella.similarity_fn_name = "dot"
    stella.save_pretrained(tmp_path / "saved")
    before, after = (fields(path / SETTINGS) for path in (GOLDENS / "arctic-m-v2", tmp_path / "saved"))
    assert after == before | {"similarity_fn_name": "dot"}


def test_settings_without_files_in_the_checkpoint(checkpoint_copy: Callable, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    for name in (SETTINGS, "sentence_bert_config.json", "tokenizer_config.json"):
        (source / name).unlink()
    stella = Stella.from_pretrained(source, prompts={"query": "q: "})
    stella.max_seq_length = 20
    stella.save_pretrained(tmp_path / "saved")
    again = Stella.from_pretrained(tmp_path / "saved")
    assert (again.prompts, again.max_seq_length) == ({"query": "q: "}, 20)
    assert not (tmp_path / "saved/sentence_bert_config.json").exists()


# --- other libraries


@pytest.mark.torch
@pytest.mark.usefixtures("two_buckets")
@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("stella-finetuned-st6", MLP_NORM),
        ("gte-multilingual", MLP_NORM),
        ("gte-qwen2", "encoder/layers/attention/k/bias"),
        pytest.param("stella", MLP_NORM, marks=pytest.mark.nightly),
        pytest.param("gte-base-en", MLP_NORM, marks=pytest.mark.nightly),
        pytest.param("arctic-m-v2", MLP_NORM, marks=pytest.mark.nightly),
        pytest.param("stella-qwen2", "encoder/norm/scale", marks=pytest.mark.nightly),
    ],
)
def test_sentence_transformers_loads_a_native_save(name: str, moved: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = changed(load(GOLDENS / name), moved)
    model.save_pretrained(tmp_path / "saved", native=True)
    ours = Stella.from_pretrained(tmp_path / "saved")
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    scale = np.abs(ours.encode(TEXTS)).max()
    np.testing.assert_allclose(theirs.encode(TEXTS), ours.encode(TEXTS), atol=1e-5 * max(scale, 1), rtol=0)


@pytest.mark.torch
def test_transformers_loads_a_native_save(tmp_path: Path) -> None:
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
def test_sentence_transformers_reads_settings(tmp_path: Path) -> None:
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
