"""The exported model: which bits it keeps, and who can load it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import origin_of
from paths import GOLDENS
from safetensors.numpy import load_file

from stella_jax import Stella
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.lora import merge_lora, with_lora
from stella_jax.sharding import make_mesh
from train import curves
from train.export import ORIGIN_FILE, Trained, export, is_exported

TEXTS = ["what is tea?", "A drink made of leaves, and a rather long sentence about it.", "x"]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def fields(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def params_of(path: Path) -> dict[str, np.ndarray]:
    base = Checkpoint.open(path)
    return {
        name: np.asarray(leaf) for name, leaf in base.load_model([base.spec.head(None)], make_mesh()).params().items()
    }


def assert_equal(found: dict[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_the_export_loads_in_jax_with_the_trained_parameters(exported):
    path, trained = exported("stella")
    assert_equal(params_of(path), trained)
    assert Stella.from_pretrained(path).encode(TEXTS).shape == (3, 64)


def test_frozen_parameters_keep_their_bits(exported):
    path, trained = exported("stella", moved="head/", dim=48)
    before = {name.removeprefix("new."): tensor for name, tensor in tensors(GOLDENS / "stella").items()}
    assert_equal(tensors(path), before)
    for head in ("2_Dense_32", "2_Dense_64", "2_Dense_128"):
        assert_equal(tensors(path / head), tensors(GOLDENS / "stella" / head))
    np.testing.assert_array_equal(tensors(path / "2_Dense_48")["linear.weight"], trained["head/kernel"].T)
    assert Stella.from_pretrained(path).dim == 48


def test_untrained_files_of_a_native_base_keep_their_bytes(exported, tmp_path):
    exported("stella", moved="head/")
    base = (tmp_path / "export").rename(tmp_path / "base")
    path, _ = exported(base, moved="head/kernel")
    changed = {"README.md", ORIGIN_FILE, "2_Dense_64/model.safetensors", "config.json", curves.FILE}
    names = {file.relative_to(base).as_posix() for file in base.rglob("*") if file.is_file()}
    assert names == {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    for name in names - changed:
        assert (path / name).read_bytes() == (base / name).read_bytes(), name


def test_frozen_half_precision_stays_half_precision(exported):
    path, _ = exported("gte-multilingual", moved="encoder/layers/mlp")
    found = tensors(path)
    assert found["embeddings.word_embeddings.weight"].dtype == np.float16
    assert found["encoder.layer.0.mlp.down_proj.weight"].dtype == np.float32
    assert "classifier.weight" in found
    assert fields(path / "config.json")["dtype"] == "float32"


def test_an_untrained_file_keeps_its_dtype(exported):
    path, _ = exported("gte-multilingual", moved="nothing")
    assert {tensor.dtype for tensor in tensors(path).values()} == {np.dtype(np.float16)}


def test_the_query_prompt_has_the_name_that_sentence_transformers_looks_up(exported):
    path, _ = exported("stella", moved="head/bias")
    prompts = fields(path / "config_sentence_transformers.json")["prompts"]
    assert prompts["query"] == prompts["s2p_query"].strip() + " "
    assert {"query", "s2p_query", "s2s_query"} == {*prompts}


def without_max_seq_length(source: Path) -> None:
    """As newer directories are: the tokenizer's settings have it."""
    settings, tokenizer = source / "sentence_bert_config.json", source / "tokenizer_config.json"
    value = fields(settings)["max_seq_length"]
    settings.write_text(json.dumps({"do_lower_case": False}))
    tokenizer.write_text(json.dumps(fields(tokenizer) | {"model_max_length": value}))


@pytest.mark.parametrize("newer", [False, True])
def test_texts_are_truncated_as_in_training(exported, checkpoint_copy, newer):
    source = checkpoint_copy("stella")
    if newer:
        without_max_seq_length(source)
    path, _ = exported(source, moved="head/bias", data={"train": "t", "eval": "e", "max_length": 16})
    assert Stella.from_pretrained(path).max_seq_length == 16
    assert ("max_seq_length" in fields(path / "sentence_bert_config.json")) == (not newer)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dim", [64, 40])
def test_modules_json_names_the_new_head(exported, dim, bias):
    """Also when it replaces one of the same dimension."""
    new_head = {"dim": dim, "bias": bias, "activation": "tanh", "pooling": "cls"}
    path, trained = exported("stella", moved="head/", new_head=new_head)
    assert {*trained} == ({"head/kernel", "head/bias"} if bias else {"head/kernel"})
    assert_equal({name: leaf for name, leaf in params_of(path).items() if name.startswith("head/")}, trained)
    spec = Checkpoint.open(path).spec
    assert spec.pooling == "cls" and spec.head(None) == spec.heads[dim]
    assert (spec.heads[dim].activation, spec.heads[dim].bias) == ("tanh", bias)
    assert spec.dims == tuple(sorted({32, 48, 64, 128, dim}))


def test_a_base_without_heads_gets_its_first(exported):
    path, trained = exported("arctic-m-v2", new_head={"dim": 24})
    assert_equal(params_of(path), trained)
    assert [module["path"] for module in json.loads((path / "modules.json").read_text())] == [
        "", "1_Pooling", "2_Dense_24", "2_Normalize"
    ]  # fmt: skip


def test_adapters_are_merged_and_also_saved_for_peft(tmp_path, metrics):
    """Also if the base is such an export: its own files are not copied."""
    source = GOLDENS / "stella"
    for targets in (["q_proj", "down_proj"], ["k_proj"]):
        origin = origin_of(str(source), lora={"rank": 2, "targets": targets})
        base = Checkpoint.open(source)
        model = with_lora(base.load_model([base.spec.head(None)], make_mesh()), 2, targets=targets)
        params = {name: leaf + 0.1 if name in model.trainable else leaf for name, leaf in model.params().items()}
        export(Trained(base, base.spec.head(None), params, model.encoder.lora), origin, metrics, tmp_path / "export")
        merged = merge_lora(model.with_params(params)).params()
        assert_equal(params_of(tmp_path / "export"), {name: np.asarray(leaf) for name, leaf in merged.items()})
        assert fields(tmp_path / "export/adapter/adapter_config.json")["target_modules"] == targets
        names = load_file(tmp_path / "export/adapter/adapter_model.safetensors")
        assert {name.split(".")[5] for name in names} == {*targets}
        source = (tmp_path / "export").rename(tmp_path / targets[0])
    card = (source / "README.md").read_text()
    assert "Trained with LoRA (rank 2, alpha 16, dropout 0, on k_proj)" in card


def test_other_heads_are_stale_unless_only_a_head_was_trained(exported):
    path, _ = exported("stella", moved="head/")
    assert "belong" not in (path / "README.md").read_text()


def test_an_export_is_recognized_by_its_origin(exported):
    path, _ = exported("stella")
    origin = origin_of(str(GOLDENS / "stella"))
    assert is_exported(path, origin)
    assert not is_exported(path, origin_of(str(GOLDENS / "stella"), step=3))
    assert not is_exported(path, origin_of(str(GOLDENS / "stella"), seed=1))
    (path / ORIGIN_FILE).write_text("{")
    assert not is_exported(path, origin)


def test_an_export_replaces_an_older_one(exported, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export/older").touch()
    for name in (".export.new", ".export.old", "..export.new.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of a kill").touch()
    path, _ = exported("stella")
    assert not (path / "older").exists()
    assert [p.name for p in tmp_path.iterdir() if "export" in p.name] == ["export"]


PLACES = [
    "save write_query_prompt 0",
    "export card 0",
    "os fsync 0",
    "Path rename 0",
    "Path rename 1",
    "Path rename 2",
]

# Writes an export, and is killed before the call of this number to this function.
KILLED = """
import os, signal, sys
from pathlib import Path
from exports import origin_of
from paths import GOLDENS
from stella_jax.checkpoint import save
from stella_jax.checkpoint.checkpoint import Checkpoint
from train import export
from train.metrics import MetricsLog

owner, name, number, output = sys.argv[1:]
owner = {"export": export, "save": save, "os": os, "Path": Path}[owner]
real, calls = getattr(owner, name), iter(range(10**9))

def killed(*args, **options):
    if next(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)

base = Checkpoint.open(GOLDENS / "stella")
origin = origin_of("base")
metrics = MetricsLog(Path(output), 0, to_file=False)
setattr(owner, name, killed)
export.export(export.Trained(base, base.spec.head(None), {}), origin, metrics, Path(output) / "export")
"""


@pytest.mark.nightly
@pytest.mark.parametrize("place", PLACES)
def test_a_kill_leaves_the_older_export_complete(exported, tmp_path, place):
    (tmp_path / "export").mkdir()
    (tmp_path / "export/older").touch()
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, (Path(__file__).parent, GOLDENS.parent)), *sys.path])}
    command = [sys.executable, "-c", KILLED, *place.split(), str(tmp_path)]
    assert subprocess.run(command, env=env, capture_output=True, timeout=300).returncode == -signal.SIGKILL
    # Between the two renames of a swap it has another name.
    kept = tmp_path / (".export.old" if place == "Path rename 2" else "export")
    assert [file.name for file in kept.iterdir()] == ["older"]
    path, _ = exported("stella", moved="head/")
    assert [p.name for p in tmp_path.iterdir() if "export" in p.name] == ["export"]
    assert Stella.from_pretrained(path).dim == 64


@pytest.mark.torch
@pytest.mark.usefixtures("two_buckets")
@pytest.mark.parametrize(
    ("name", "moved", "dim"),
    [
        ("stella", "", 32),
        pytest.param("stella-finetuned-st6", "", None, marks=pytest.mark.nightly),
        pytest.param("gte-base-en", "", None, marks=pytest.mark.nightly),
        ("gte-multilingual", "encoder/layers/mlp", None),
        ("arctic-m-v2", "", None),
        ("stella-qwen2", "", 32),
        pytest.param("gte-qwen2", "encoder/layers/mlp", None, marks=pytest.mark.nightly),
    ],
)
def test_sentence_transformers_gives_the_same_embeddings(exported, name, moved, dim):
    from sentence_transformers import SentenceTransformer

    path, _ = exported(name, moved, dim)
    ours = Stella.from_pretrained(path, dtype="float32").encode(TEXTS)
    theirs = SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    if dim:
        assert theirs.shape == (3, dim)


@pytest.mark.torch
@pytest.mark.usefixtures("two_buckets")
@pytest.mark.parametrize("newer", [False, True])
def test_sentence_transformers_truncates_texts_as_in_training(exported, tmp_path, newer):
    """The newer layout is saved by sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    source = GOLDENS / "stella"
    if newer:
        path, _ = exported(source, moved="head/bias")
        source = tmp_path / "saved"
        SentenceTransformer(str(path), device="cpu").save_pretrained(str(source))
        assert "max_seq_length" not in fields(source / "sentence_bert_config.json")
    path, _ = exported(source, moved="head/bias", data={"train": "t", "eval": "e", "max_length": 48})
    theirs, ours = SentenceTransformer(str(path), device="cpu"), Stella.from_pretrained(path, dtype="float32")
    assert theirs.max_seq_length == ours.max_seq_length == 48
    texts = [text * 9 for text in TEXTS]
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours.encode_query(TEXTS), theirs.encode_query(TEXTS), atol=1e-4, rtol=0)


@pytest.mark.torch
@pytest.mark.usefixtures("two_buckets")
def test_sentence_transformers_uses_a_new_head(exported):
    from sentence_transformers import SentenceTransformer

    path, _ = exported("gte-base-en", new_head={"dim": 24, "pooling": "mean", "bias": False, "activation": "tanh"})
    ours = Stella.from_pretrained(path, dtype="float32").encode(TEXTS)
    np.testing.assert_allclose(ours, SentenceTransformer(str(path), device="cpu").encode(TEXTS), atol=1e-4, rtol=0)
