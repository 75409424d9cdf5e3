"""Safetensors files are mapped, checked, and refused if they are not valid."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from corruptions import WEIGHTS, sharded
from paths import GOLDENS
from safetensors.numpy import load_file, save_file

from stella_jax.checkpoint.directory import Directory
from stella_jax.checkpoint.shards import open_shards, weight_files


def test_tensors_equal_safetensors():
    (shard,) = open_shards(Directory(GOLDENS / "stella"), "")
    expected = load_file(GOLDENS / "stella" / WEIGHTS)
    assert {tensor.name for tensor in shard.tensors} == set(expected)
    for tensor in shard.tensors:
        assert tensor.shape == expected[tensor.name].shape
        np.testing.assert_array_equal(tensor.array(), expected[tensor.name])
        assert not tensor.array().flags.writeable


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(3, 2), (), (0, 4), (5,)])
def test_dtypes_and_shapes(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    save_file({"b": np.ones(3, np.float32), "a": array}, tmp_path / WEIGHTS)
    (shard,) = open_shards(Directory(tmp_path), "")
    found = next(tensor for tensor in shard.tensors if tensor.name == "a").array()
    assert (found.dtype, found.shape) == (dtype, shape)
    np.testing.assert_array_equal(found.astype(np.float32), array.astype(np.float32))


def test_header_with_padding_and_metadata_is_kept(tmp_path):
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({"__metadata__": {"format": "pt"}, "ä": tensor}, ensure_ascii=False) + "   "
    data = np.array([1.5, -2.0], np.float32).tobytes()
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + data)
    (shard,) = open_shards(Directory(tmp_path), "")
    assert shard.header == text
    np.testing.assert_array_equal(shard.tensors[0].array(), [1.5, -2.0])


def test_shards_in_order_of_their_names(checkpoint_copy):
    path = checkpoint_copy()
    sharded(lambda _: None)(path)
    assert weight_files(Directory(path), "") == ["a.safetensors", "b.safetensors"]
    assert [shard.path.name for shard in open_shards(Directory(path), "")] == ["a.safetensors", "b.safetensors"]


def test_single_file_takes_precedence_over_an_index(checkpoint_copy):
    path = checkpoint_copy()
    (path / "model.safetensors.index.json").write_text("{}")
    assert weight_files(Directory(path), "") == [WEIGHTS]


def test_files_of_a_module_in_its_folder():
    assert weight_files(Directory(GOLDENS / "stella"), "2_Dense_32") == ["2_Dense_32/model.safetensors"]
