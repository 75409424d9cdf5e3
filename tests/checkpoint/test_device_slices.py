"""A device's slice of a leaf and a leaf's hash: the same numbers in both layouts."""

import ml_dtypes
import numpy as np
import pytest
from corruptions import QKV, tensors
from paths import GOLDENS
from safetensors.numpy import load_file

from convert.flax_layout import to_flax
from stella_jax import Stella
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.device_slices import read_slices, sha256_of_leaf
from stella_jax.sharding import make_mesh

KERNEL = "encoder/layers/attention/qkv/kernel"


@pytest.fixture(scope="module", params=["torch", "flax"])
def checkpoint(request, tmp_path_factory):
    torch = Checkpoint.open(GOLDENS / "stella")
    if request.param == "torch":
        return torch
    path = tmp_path_factory.mktemp("converted") / "flax"
    to_flax(torch, "stella", path)
    return Checkpoint.open(path)


def expected_leaf(path):
    """A leaf, built by the test from the files and its row of the weight table."""
    leaf = Checkpoint.open(GOLDENS / "stella").weights.leaves[path]
    assert leaf.weight
    file = load_file(GOLDENS / "stella" / leaf.folder / "model.safetensors")
    parts = [leaf.weight.to_flax(file[name], leaf.sizes) for name in leaf.torch_names]
    return np.stack(parts) if leaf.stacked else parts[0]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_whole_leaf(checkpoint, dtype):
    for path, leaf in checkpoint.weights.leaves.items():
        [found] = read_slices(checkpoint.weights, path, dtype, [(slice(None),) * len(leaf.shape)])
        expected = expected_leaf(path).astype(dtype)
        assert (found.shape, found.dtype) == (leaf.shape, dtype)
        assert found.tobytes() == expected.tobytes()
        assert found.ctypes.data % 64 == 0


def test_slices_of_a_leaf(checkpoint):
    whole = slice(None)
    indices = [(whole, whole, whole, slice(start, start + 2), whole) for start in (0, 2)]
    slices = read_slices(checkpoint.weights, KERNEL, np.float32, indices)
    for index, part in zip(indices, slices, strict=True):
        np.testing.assert_array_equal(part, expected_leaf(KERNEL)[index])
        assert part.flags.c_contiguous


@pytest.mark.parametrize("mesh", [None, "data=3", "data=2,model=4"])
def test_parameters_on_any_mesh_equal_the_files(checkpoint, mesh):
    model = Stella(checkpoint, mesh=make_mesh(mesh)).model
    for name, array in model.params().items():
        path = name.replace("head/", "heads/2_Dense_64/")
        assert np.asarray(array).tobytes() == expected_leaf(path).tobytes()


def test_devices_of_a_host_share_equal_slices(checkpoint):
    model = Stella.from_pretrained(checkpoint.directory.root, mesh="data=4,model=2").model
    kernel = model.encoder.layers.mlp.down.kernel[...]
    assert len({shard.data.unsafe_buffer_pointer() for shard in kernel.addressable_shards}) == 2


def test_same_hash_in_both_layouts(checkpoint):
    torch = Checkpoint.open(GOLDENS / "stella").weights
    hashes = {path: sha256_of_leaf(checkpoint.weights, path) for path in torch.leaves}
    assert hashes == {path: sha256_of_leaf(torch, path) for path in torch.leaves}
    kernels = [path for path in hashes if path.endswith("kernel")]
    assert len({hashes[path] for path in kernels}) == len(kernels)


def test_changed_number_changes_the_hash(checkpoint_copy):
    before = sha256_of_leaf(Checkpoint.open(GOLDENS / "stella").weights, KERNEL)
    path = checkpoint_copy()
    tensors(lambda arrays: arrays[QKV].__setitem__((3, 4), 0.5))(path)
    assert sha256_of_leaf(Checkpoint.open(path).weights, KERNEL) != before


def test_swapped_layers_change_the_hash(checkpoint_copy):
    def swap(arrays):
        first, second = (f"new.encoder.layer.{i}.attention.qkv_proj.weight" for i in (0, 1))
        arrays[first], arrays[second] = arrays[second], arrays[first]

    before = sha256_of_leaf(Checkpoint.open(GOLDENS / "stella").weights, KERNEL)
    path = checkpoint_copy()
    tensors(swap)(path)
    assert sha256_of_leaf(Checkpoint.open(path).weights, KERNEL) != before


def test_nan_is_refused(checkpoint_copy, refused):
    path = checkpoint_copy()
    tensors(lambda arrays: arrays[QKV].fill(np.nan))(path)
    with refused(QKV):
        read_slices(Checkpoint.open(path).weights, KERNEL, np.float32, [(slice(None),) * 5])
