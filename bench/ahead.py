"""Ahead-of-time compilation of an encoder for a described topology."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.topologies import TopologyDescription
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from stella_jax.batching import rows_of
from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.embedding_model import EmbeddingModel
from stella_jax.runner import DEFAULT_TOKEN_BUDGET, last_hidden
from stella_jax.sharding import AXES, BATCH_SPEC, REPLICATED


def data_mesh(topology: TopologyDescription) -> Mesh:
    """A mesh with all chips of a topology on the data axis."""
    return Mesh(np.array(topology.devices).reshape(-1, 1), AXES, axis_types=(AxisType.Auto,) * 2)


def compile_for(config: EncoderConfig, mesh: Mesh, length: int, dtype: str) -> tuple[jax.stages.Compiled, float, int]:
    """Compiles the encoder for a bucket's shape; returns it, the seconds it took, and the rows of a chip."""
    model = EmbeddingModel.abstract(config, [None], dtype=dtype, param_dtype=dtype, pooling="mean")
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda leaf: _abstract(mesh, leaf.shape, leaf.dtype), state)
    rows = rows_of(length, DEFAULT_TOKEN_BUDGET)
    batch = rows * mesh.size
    ids, lengths = (
        _abstract(mesh, (batch, length), jnp.int32, BATCH_SPEC),
        _abstract(mesh, (batch,), jnp.int32, BATCH_SPEC),
    )
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = last_hidden.lower(graphdef, state, ids, lengths).compile()
    return compiled, time.perf_counter() - start, rows


def hbm_bytes(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Bytes of a chip's memory that a program needs with arguments and results, and those of its temporaries."""
    memory = compiled.memory_analysis()
    assert memory is not None  # these compilers always return one
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return used + memory.generated_code_size_in_bytes, memory.temp_size_in_bytes


def _abstract(mesh: Mesh, shape: tuple[int, ...], dtype, spec: PartitionSpec = REPLICATED) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
