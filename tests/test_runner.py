"""What the programs of a batch hold in memory; what they compute is in the tests of the embedder and the goldens."""

import dataclasses
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
