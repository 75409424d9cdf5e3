"""torch -> Flax -> torch: names, dtypes, bits and whole files; and modified parameters back to torch."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from marks import nightly
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

from convert import to_flax, to_torch
from convert.__main__ import main
from stella_jax import Stella
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.orbax_store import PARAMS, finish_saving, save_leaf

FAMILY = ("stella", "stella-finetuned-st6", "gte-base-en", "gte-large-en", "gte-multilingual", "arctic-m-v2")
FAMILY += ("stella-qwen2", "gte-qwen2")


def converted(source: Path, destination: Path) -> Checkpoint:
    to_flax(Checkpoint.open(source), str(source), destination)
    return Checkpoint.open(destination)


def files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", FAMILY)
def test_every_file_round_trips(name: str, tmp_path: Path) -> None:
    flax = converted(GOLDENS / name, tmp_path / "flax")
    to_torch(flax, tmp_path / "torch")
    came, went = files(GOLDENS / name), files(tmp_path / "torch")
    came.pop("expected.safetensors")
    assert went.keys() == came.keys()
    assert [file for file in came if came[file] != went[file]] == []


QUICK = ("stella", "gte-multilingual", "stella-qwen2")


@pytest.mark.usefixtures("two_buckets")
@pytest.mark.parametrize("name", [*QUICK, *nightly(*(name for name in FAMILY if name not in QUICK))])
def test_both_layouts_give_the_same_embeddings(name: str, tmp_path: Path) -> None:
    converted(GOLDENS / name, tmp_path / "flax")
    texts = ["a", "green tea " * 20, ""]
    ours = Stella.from_pretrained(tmp_path / "flax")
    theirs = Stella.from_pretrained(GOLDENS / name)
    assert (ours.dims, ours.prompts) == (theirs.dims, theirs.prompts)
    assert np.array_equal(ours.encode(texts), theirs.encode(texts))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_bits_of_every_dtype_survive(dtype: type, checkpoint_copy, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    tensors = load_file(source / "model.safetensors")
    rng = np.random.default_rng(0)
    # Any finite bits, including subnormals, negative zero and the largest numbers.
    for key, tensor in tensors.items():
        bits = rng.integers(0, 256, tensor.size * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype)
        with np.errstate(invalid="ignore"):
            tensors[key] = np.where(np.isfinite(bits), bits, dtype(-0.0)).astype(dtype).reshape(tensor.shape)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    to_torch(converted(source, tmp_path / "flax"), tmp_path / "torch")
    assert (tmp_path / "torch/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_shards_round_trip(checkpoint_copy, tmp_path: Path) -> None:
    source = checkpoint_copy("stella")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, half in zip(names, halves, strict=True):
        save_file(half, source / name, {"format": "pt"})
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (source / "model.safetensors.index.json").write_text(index)
    to_torch(converted(source, tmp_path / "flax"), tmp_path / "torch")
    for name in [*names, "model.safetensors.index.json"]:
        assert (tmp_path / "torch" / name).read_bytes() == (source / name).read_bytes()
    assert main([str(source), str(tmp_path / "native"), "--to", "transformers", "--verify"]) == 0
    assert not (tmp_path / "native/model.safetensors.index.json").exists()


def test_modified_parameters(tmp_path: Path, refused) -> None:
    flax = converted(GOLDENS / "stella", tmp_path / "flax")
    shutil.rmtree(tmp_path / "flax" / PARAMS)
    for path in flax.weights.leaves:
        array = np.asarray(Checkpoint.open(GOLDENS / "stella").weights.read(path))
        save_leaf(tmp_path / "flax" / PARAMS, path, array + 1 if path.endswith("qkv/kernel") else array)
    finish_saving(tmp_path / "flax" / PARAMS)
    modified = Checkpoint.open(tmp_path / "flax")
    with refused("qkv/kernel"):
        to_torch(modified, tmp_path / "refused")
    with refused("qkv/kernel"):
        to_flax(modified, "modified", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert main([str(tmp_path / "flax"), str(tmp_path / "torch"), "--to", "torch", "--verify", "--accept-changes"]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (GOLDENS / "stella", tmp_path / "torch"))
    for name, tensor in before.items():
        wanted = tensor + 1 if name.endswith("qkv_proj.weight") else tensor
        assert np.array_equal(after[name], wanted), name


def test_another_dtype_gets_a_new_header(tmp_path: Path) -> None:
    source = Checkpoint.open(GOLDENS / "gte-multilingual")  # stored as float16
    flax = converted(GOLDENS / "gte-multilingual", tmp_path / "flax")
    shutil.rmtree(tmp_path / "flax" / PARAMS)
    for path in flax.weights.leaves:
        save_leaf(tmp_path / "flax" / PARAMS, path, source.weights.read(path).astype(np.float32))
    finish_saving(tmp_path / "flax" / PARAMS)
    to_torch(Checkpoint.open(tmp_path / "flax"), tmp_path / "torch", accept_changes=True)
    before, after = (
        load_file(path / "model.safetensors") for path in (GOLDENS / "gte-multilingual", tmp_path / "torch")
    )
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[name], before[name].astype(np.float32)) for name in before)
    assert {tensor.dtype for tensor in after.values()} == {np.dtype(np.float32)}


def test_converting_a_converted_checkpoint(tmp_path: Path) -> None:
    first = converted(GOLDENS / "stella", tmp_path / "first")
    to_flax(first, "first", tmp_path / "second")
    to_torch(Checkpoint.open(tmp_path / "second"), tmp_path / "torch")
    assert (tmp_path / "torch/model.safetensors").read_bytes() == (GOLDENS / "stella/model.safetensors").read_bytes()


def test_orbax_reads_the_parameters(tmp_path: Path) -> None:
    from orbax.checkpoint import v1 as ocp

    converted(GOLDENS / "stella", tmp_path / "flax")
    tree = ocp.load(str(tmp_path / "flax" / PARAMS))
    assert tree["encoder"]["layers"]["attention"]["qkv"]["kernel"].shape == (3, 64, 3, 4, 16)
    assert sorted(tree["heads"]) == ["2_Dense_128", "2_Dense_32", "2_Dense_48", "2_Dense_64"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
