"""The weight table: every tensor of every golden in both directions, and the sizes of published models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from corruptions import QKV, tensors
from encoders import abstract_encoder
from flax import nnx
from paths import GOLDENS
from published import PUBLISHED, published, read_config
from safetensors.numpy import load_file

from stella_jax import EncoderConfig, Stella
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.weights import check_finite
from stella_jax.models import architecture_of

FAMILY = ("stella", "stella-finetuned-st6", "gte-base-en", "gte-large-en", "gte-multilingual", "arctic-m-v2")
FAMILY += ("stella-qwen2",)
# Parameters of the encoder; stella's number is on its card, the others follow from their sizes.
PARAMETERS = {"stella_en_400M_v5": 434_139_136}


def full_size(name: str) -> EncoderConfig:
    return read_config(published(name))


@pytest.mark.parametrize("name", FAMILY)
def test_every_tensor_round_trips(name):
    weights = Checkpoint.open(GOLDENS / name).weights
    folders = {leaf.folder for leaf in weights.leaves.values()}
    expected = {folder: load_file(GOLDENS / name / folder / "model.safetensors") for folder in folders}
    for path, leaf in weights.leaves.items():
        array = weights.read(path)
        assert array.shape == leaf.shape
        for torch_name, tensor in leaf.to_torch(array):
            original = expected[leaf.folder].pop(torch_name)
            assert (tensor.dtype, tensor.shape) == (original.dtype, original.shape)
            assert tensor.tobytes() == original.tobytes()
            assert tensor.flags.c_contiguous
    assert not any(expected.values()), "a tensor that no leaf holds"


def test_axes_are_split_as_published():
    """Rows of qkv_proj are q, k, v, each heads x head_dim; rows of up_gate_proj are up, then gate."""
    weights = Checkpoint.open(GOLDENS / "stella").weights
    torch = load_file(GOLDENS / "stella/model.safetensors")
    hidden, heads, head_dim, inner = 64, 4, 16, 128
    qkv = weights.read("encoder/layers/attention/qkv/kernel")
    assert qkv.shape == (3, hidden, 3, heads, head_dim)
    k_of_head_2 = torch["new.encoder.layer.1.attention.qkv_proj.weight"][hidden + 2 * head_dim :][:head_dim]
    np.testing.assert_array_equal(qkv[1, :, 1, 2], k_of_head_2.T)
    up_gate = weights.read("encoder/layers/mlp/up_gate/kernel")
    assert up_gate.shape == (3, hidden, 2, inner)
    np.testing.assert_array_equal(up_gate[2, :, 1], torch["new.encoder.layer.2.mlp.up_gate_proj.weight"][inner:].T)
    out = weights.read("encoder/layers/attention/out/kernel")
    assert out.shape == (3, heads, head_dim, hidden)
    o_proj = torch["new.encoder.layer.0.attention.o_proj.weight"]
    np.testing.assert_array_equal(out[0, 3], o_proj[:, 3 * head_dim :].T)


def test_unused_tensors_pass_through():
    weights = Checkpoint.open(GOLDENS / "gte-multilingual").weights
    passthrough = [path for path in weights.leaves if path.startswith("passthrough/")]
    assert passthrough == ["passthrough/classifier/weight", "passthrough/classifier/bias"]
    assert {str(dtype) for dtype in weights.dtypes.values()} == {"float16"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameter_dtypes(dtype):
    """For a float16 file: norms and heads in float32, all others in the compute dtype."""
    model = Stella.from_pretrained(GOLDENS / "gte-multilingual", dtype=dtype)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.runner.state):
        assert str(leaf.dtype) == ("float32" if "norm" in jax.tree_util.keystr(path) else dtype)
    headed = Stella.from_pretrained(GOLDENS / "stella", dtype=dtype)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(headed.model.head))} == {"float32"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_encoders_have_the_published_number_of_parameters(name):
    config = full_size(name)
    _, state = abstract_encoder(config, jnp.float32)
    leaves = [math.prod(leaf.shape) for leaf in jax.tree.leaves(state)]
    architecture = architecture_of(config)
    sizes = architecture.sizes(config)
    rows = [(weight, math.prod(weight.torch_shape(sizes))) for weight in architecture.weights_of(config)]
    stored = sum(size * (config.num_hidden_layers if weight.stacked else 1) for weight, size in rows)
    assert sum(leaves) == stored == PARAMETERS.get(name, stored)
    assert len(leaves) == len(rows)


def test_eval_shape_of_full_size_encoders():
    """Only shapes, at the maximum length; nothing is computed."""
    config = full_size("stella_en_400M_v5")
    graphdef, state = abstract_encoder(config, jnp.bfloat16)
    ids, lengths = jax.ShapeDtypeStruct((2, 8192), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32)
    last, each = jax.eval_shape(lambda state, *x: nnx.merge(graphdef, state)(*x), state, ids, lengths)
    assert last.shape == (2, 8192, 1024)
    assert each.shape == (24, 2, 8192, 1024)


def test_finite_numbers_with_an_infinite_sum():
    check_finite(np.full(10, 3e38, np.float32), "x")
    check_finite(np.full(10, 6e4, np.float16), "x")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(dtype, value, refused):
    array = np.zeros((3, 3), dtype)
    array[1, 1] = value
    with refused("kernel"):
        check_finite(array, "kernel")


def test_nan_is_found_when_it_is_read(checkpoint_copy, refused):
    path = checkpoint_copy()
    tensors(lambda arrays: arrays[QKV].fill(np.nan))(path)
    weights = Checkpoint.open(path).weights
    with refused(QKV):
        weights.read("encoder/layers/attention/qkv/kernel")
