"""Compiles an encoder for NVIDIA GPUs on a machine without one, and checks the compiled programs.

    python bench/gpu.py [--model stella|qwen2] [--gpu H200 A100] [--length 16 128 512 8192] [--dtype bfloat16]
                        [--out FILE]

XLA (extra `cuda`, jax 0.12 or later) compiles ahead of time for a described GPU, cuDNN's attention included. This finds
programs that do not compile, missing kernels, and wasted FLOPs and memory. It does not measure speed, and does not
autotune matmul kernels. Exits with 1 if a program needs a collective or more memory than the GPU has, or, in bfloat16,
more than 1.1 times the encoder's matmul FLOPs, or if it does not use cuDNN.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The extra has CUDA's compiler; the platform keeps JAX from looking for a driver.
os.environ |= {"JAX_PLATFORMS": "cpu"}

import jax
from ahead import compile_for, data_mesh, hbm_bytes
from checkpoint import add_model, config_of
from hlo import Program
from jax.experimental.topologies import get_topology_desc
from report import publish, table

from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.flops import linear_flops
from stella_jax.models import attention

LENGTHS = (16, 128, 512, 8192)
MAX_RATIO = 1.1  # FLOPs / the encoder's own
FAMILY = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores} clock_rate_ghz: {ghz} fpus_per_core: {fpus} threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  l2_cache_size: {l2} memory_bandwidth: {bandwidth} device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA {name}"
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU's published specification; rates per second, sizes in bytes."""

    name: str
    major: int
    cores: int
    ghz: float
    fpus: int
    shared: int
    optin: int
    l2: int
    memory: int
    bandwidth: int
    bf16_flops: float

    @property
    def description(self) -> str:
        return FAMILY.format(**{name: getattr(self, name) for name in self.__slots__})


GPUS = {
    "H200": Gpu("H200", 9, 132, 1.98, 128, 233472, 232448, 52428800, 141 * 10**9, 4800 * 10**9, 989e12),
    "A100": Gpu("A100", 8, 108, 1.41, 64, 167936, 166912, 41943040, 80 * 10**9, 2039 * 10**9, 312e12),
}
COLUMNS = ("GPU", "dtype", "rows x tokens", "compile s", "GiB", "temporaries GiB", "cuDNN kernels",
           "matmul FLOPs / bound", "memory MB/token", "memory / matmul time", "moves per layer")  # fmt: skip
NOTES = """
The bound is the encoder's {linear:.4f} GFLOP per token in linear layers; float32 adds attention,
which runs without cuDNN there.
Memory MB/token: every instruction reads and writes each of its arrays once. Memory / matmul time: that traffic
against those FLOPs, each at the GPU's published bfloat16 peak. Moves: instructions of a layer that only move or
convert 1 MiB or more. Compile times are from one run each.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """A compiled bucket, with FLOPs and bytes of one batch."""

    config: EncoderConfig
    gpu: Gpu
    dtype: str
    rows: int
    length: int
    seconds: float
    used: int
    temporary: int
    program: Program

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def of_bound(self) -> float:
        return self.program.matmul_flops / (linear_flops(self.config) * self.tokens)

    @property
    def memory_of_product_time(self) -> float:
        """Seconds of memory traffic / seconds of matmuls, each at the GPU's peak."""
        program = self.program
        return (program.hbm_bytes / self.gpu.bandwidth) / (program.matmul_flops / self.gpu.bf16_flops)

    def faults(self) -> Iterator[str]:
        """Failed checks, a sentence each."""
        where = f"{self.gpu.name} at {self.rows} x {self.length} tokens in {self.dtype}"
        if self.program.collectives:
            yield f"{where}: {self.program.collectives} collectives; expected none on one GPU."
        if self.used > self.gpu.memory:
            used, memory = self.used / 2**30, self.gpu.memory / 2**30
            yield f"{where}: needs {used:.1f} of {memory:.1f} GiB; lower the token budget."
        by_cudnn = self.dtype == "bfloat16"
        if len(self.program.kernels) != by_cudnn:
            yield f"{where}: {len(self.program.kernels)} cuDNN kernels in a layer; expected {by_cudnn:d}."
        if by_cudnn and not 0.999 <= self.of_bound <= MAX_RATIO:
            yield f"{where}: {self.of_bound:.3f} times the encoder's matmul FLOPs; expected at most {MAX_RATIO}."

    def cells(self) -> list[object]:
        return [self.gpu.name, self.dtype, f"{self.rows} x {self.length}", self.seconds, self.used / 2**30,
                self.temporary / 2**30, len(self.program.kernels), f"{self.of_bound:.4f}",
                self.program.hbm_bytes / self.tokens / 1e6, self.memory_of_product_time,
                len(self.program.moves)]  # fmt: skip


def measure(config: EncoderConfig, gpu: Gpu, length: int, dtype: str) -> Result:
    mesh = data_mesh(get_topology_desc(platform="cuda", target_config=gpu.description, topology="1x1x1"))
    attention.cuda_generation = lambda: gpu.major  # would look at this process's GPUs, but there are none
    compiled, seconds, rows = compile_for(config, mesh, length, dtype)
    return Result(config, gpu, dtype, rows, length, seconds, *hbm_bytes(compiled), Program(compiled.as_text() or ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--gpu", nargs="+", choices=GPUS, default=list(GPUS))
    parser.add_argument("--length", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--dtype", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path, help="append the table to this file")
    options = parser.parse_args()
    if jax.__version_info__ < (0, 12):
        raise SystemExit(f"jax {jax.__version__}: cannot compile for an absent GPU; use jax 0.12 (Python 3.12).")
    config, results = config_of(options), []
    for gpu in options.gpu:
        for dtype in options.dtype:
            for length in options.length:
                results.append(measure(config, GPUS[gpu], length, dtype))
                print(*results[-1].cells(), flush=True)
    text = table(COLUMNS, [result.cells() for result in results]) + "\n"
    text += NOTES.format(linear=linear_flops(config) / 1e9)
    publish(f"gpu: {options.model}'s encoder, compiled ahead of time", text, options.out)
    if faults := [fault for result in results for fault in result.faults()]:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
