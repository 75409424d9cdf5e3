"""Compiles stella's 434M encoder for TPU pods, on a machine without a TPU, and reports what the compiler says.

    python bench/tpu.py [--topology v5e:2x4 ...] [--length 128 512 8192] [--out FILE]

libtpu (extra `tpu`) compiles ahead of time for a described topology. Refused programs, collectives, and memory beyond
the chip's show here; speed does not. The bound on work is the encoder's own: 0.8053 GFLOP a token in matmuls and
98,304 * length FLOP in attention.
"""

import argparse
import os
import re
import time
from collections import Counter
from pathlib import Path

# libtpu asks for a host's metadata unless it is told that there is none.
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "JAX_PLATFORMS": "cpu",
}

import jax
import jax.numpy as jnp
import numpy as np
from checkpoint import STELLA
from jax.experimental.topologies import get_topology_desc
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from report import publish, table

from stella_jax.batching import rows_of
from stella_jax.checkpoint import abstract_encoder
from stella_jax.heads import Head
from stella_jax.runner import DEFAULT_TOKEN_BUDGET, Output, embeddings
from stella_jax.sharding import AXES, EVERYWHERE, ROWS

TOPOLOGIES = ("v5e:2x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8")
LENGTHS = (128, 512, 8192)
HEAD = Head("2_Dense_1024", 1024)
COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
LINEAR_FLOPS, ATTENTION_FLOPS = 0.8053e9, 98_304


def pod_mesh(topology: str) -> Mesh:
    """All chips of a topology on the data axis."""
    devices = np.array(get_topology_desc(platform="tpu", topology_name=topology).devices)
    return Mesh(devices.reshape(-1, 1), AXES, axis_types=(AxisType.Auto,) * 2)


def described(mesh: Mesh, shape: tuple[int, ...], dtype, spec: PartitionSpec = EVERYWHERE) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def compile_for(mesh: Mesh, length: int, dtype: str) -> tuple[jax.stages.Compiled, float, int]:
    """The compiled forward at a bucket's shape, the seconds it took, and the rows of a chip."""
    graphdef, state = abstract_encoder(STELLA, jnp.dtype(dtype))
    state = jax.tree.map(lambda leaf: described(mesh, leaf.shape, leaf.dtype), state)
    head = {"kernel": described(mesh, (1024, 1024), jnp.float32), "bias": described(mesh, (1024,), jnp.float32)}
    rows = rows_of(length, DEFAULT_TOKEN_BUDGET)
    batch = rows * mesh.size
    ids, lengths = described(mesh, (batch, length), jnp.int32, ROWS), described(mesh, (batch,), jnp.int32, ROWS)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = embeddings.lower(
            graphdef, state, (head,), ids, lengths, output=Output("mean", (HEAD,), False)
        ).compile()
    return compiled, time.perf_counter() - start, rows


def measure(topology: str, length: int, dtype: str) -> list[object]:
    mesh = pod_mesh(topology)
    compiled, seconds, rows = compile_for(mesh, length, dtype)
    memory = compiled.memory_analysis()
    assert memory is not None  # libtpu always has one
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    text = compiled.as_text() or ""
    collectives = Counter(COLLECTIVE.findall(text))
    kernels = len(re.findall(r'custom_call_target="tpu_custom_call"', text))
    bound = (LINEAR_FLOPS + ATTENTION_FLOPS * length) * rows * length / 1e12
    shape = f"{rows} x {length}"
    return [topology, mesh.size, shape, seconds, used / 2**30, memory.temp_size_in_bytes / 2**30, kernels,
            sum(collectives.values()), bound]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--length", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    options = parser.parse_args()
    rows = []
    for topology in options.topology:
        for length in options.length:
            rows.append(measure(topology, length, options.dtype))
            print(*rows[-1], flush=True)
    columns = ["topology", "chips", "rows x tokens a chip", "compile s", "HBM GiB a chip", "of it temporaries",
               "attention kernels", "collectives", "TFLOP a batch and chip"]  # fmt: skip
    publish(f"tpu: the 434M encoder, {options.dtype}, compiled ahead of time", table(columns, rows), options.out)
    if any(row[7] for row in rows):
        raise SystemExit("a data-parallel forward pass must need no collective")


if __name__ == "__main__":
    main()
