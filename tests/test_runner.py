"""The program and the memory of a batch on CPU; test_embedder.py and test_goldens.py test its results."""

import dataclasses
import re
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import abstract_model
from flax import nnx
from paths import GOLDENS

from stella_jax import Stella
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.models.layerwise import LayerByLayer
from stella_jax.runner import last_hidden, last_hidden_on_cpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_by_layer_equals_the_scan(dtype: str) -> None:
    runner = Stella.from_pretrained(GOLDENS / "stella", dtype=dtype).runner
    assert isinstance(runner._encode, LayerByLayer)
    ids, lengths = jnp.arange(32, dtype=jnp.int32).reshape(2, 16), jnp.array([16, 5], jnp.int32)
    expected = np.asarray(last_hidden(runner.graphdef, runner.state, ids, lengths))
    found = np.asarray(runner._encode(ids, lengths))
    assert found.dtype == np.float32 and np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if dtype == "float32" else 5e-2)


def test_layer_by_layer_does_not_copy_the_weights() -> None:
    stella = Stella.from_pretrained(GOLDENS / "stella")
    runner = stella.runner
    assert isinstance(runner._encode, LayerByLayer)
    kernel = stella.model.encoder.layers.mlp.down.kernel[...]
    start, size = kernel.unsafe_buffer_pointer(), kernel[0].nbytes
    places = [layer["mlp"]["down"]["kernel"].unsafe_buffer_pointer() for layer in runner._encode._layers]
    assert places == [start + i * size for i in range(len(places))] and len(places) == 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scan_does_not_copy_the_layers(dtype: jnp.dtype) -> None:
    config = dataclasses.replace(Checkpoint.open(GOLDENS / "stella").spec.config, num_hidden_layers=48)
    graphdef, state = nnx.split(abstract_model(config, dtype))
    layers = sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state["encoder"]["layers"]))
    ids, lengths = jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    memory: Any = last_hidden_on_cpu.lower(graphdef, state, ids, lengths).compile().memory_analysis()
    assert memory.temp_size_in_bytes < layers / 4


def test_mesh_of_cpus_uses_the_scan() -> None:
    encode: Any = Stella.from_pretrained(GOLDENS / "stella", mesh="data=2").runner._encode
    assert encode.func is last_hidden_on_cpu


def test_bfloat16_products_on_cpu_are_float32() -> None:
    config = Checkpoint.open(GOLDENS / "stella").spec.config
    graphdef, state = nnx.split(abstract_model(config, jnp.bfloat16))
    ids, lengths = jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    program = last_hidden.lower(graphdef, state, ids, lengths).as_text()
    tensor = r"tensor<(?:\d+x)+(\w+)>"
    products = re.findall(rf"stablehlo.dot_general .* : \({tensor}, {tensor}\) -> {tensor}", program)
    assert len(products) == 6 and set(products) == {("bf16", "bf16", "f32")}, products
