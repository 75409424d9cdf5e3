"""What the programs of a batch hold in memory; what they compute is in the tests of the embedder and the goldens."""

import dataclasses
import re
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from paths import GOLDENS

from stella_jax.checkpoint import Checkpoint, abstract_encoder
from stella_jax.runner import Output, embeddings_on_cpu, token_states_on_cpu


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_batch_needs_no_second_copy_of_the_layers(dtype: jnp.dtype) -> None:
    config = dataclasses.replace(Checkpoint.open(GOLDENS / "stella").layout.config, num_hidden_layers=48)
    graphdef, state = abstract_encoder(config, dtype)
    layers = sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state["layers"]))
    ids, lengths = jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    output = Output("mean", (None,), normalize=False)
    for lowered in (
        embeddings_on_cpu.lower(graphdef, state, ({},), ids, lengths, output=output),
        token_states_on_cpu.lower(graphdef, state, ids, lengths),
    ):
        memory: Any = lowered.compile().memory_analysis()
        assert memory.temp_size_in_bytes < layers / 4


def test_on_cpu_every_product_of_bfloat16_is_float32_as_only_that_is_fast_there() -> None:
    config = Checkpoint.open(GOLDENS / "stella").layout.config
    graphdef, state = abstract_encoder(config, jnp.bfloat16)
    ids, lengths = jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    program = token_states_on_cpu.lower(graphdef, state, ids, lengths).as_text()
    tensor = r"tensor<(?:\d+x)+(\w+)>"
    products = re.findall(rf"stablehlo.dot_general .* : \({tensor}, {tensor}\) -> {tensor}", program)
    assert len(products) == 6 and set(products) == {("bf16", "bf16", "f32")}, products
