"""Compiles an encoder for TPU pods on a machine without a TPU, and checks the compiled programs.

    python bench/tpu.py [--model stella|qwen2] [--topology v5e:2x4 ...] [--length 128 512 8192] [--out FILE]

libtpu (extra `tpu`) compiles ahead of time for a described topology. This finds programs that do not compile,
collectives, wasted FLOPs, HBM traffic, and programs that do not fit in memory; it does not measure speed. The bound is
the encoder's own FLOPs, for stella's 434M 0.8053 GFLOP per token in matmuls and 98,304 * length FLOP in attention.
Exits with 1 if a program needs more than 1.1 times that, a collective or more HBM than a chip has, or lacks the
attention kernel.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Keeps libtpu from querying the host's metadata.
os.environ |= {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "JAX_PLATFORMS": "cpu",
}

from ahead import compile_for, data_mesh, hbm_bytes
from checkpoint import add_model, config_of
from hlo import Program
from jax.experimental.topologies import get_topology_desc
from report import publish, table

from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.flops import attention_flops, linear_flops
from stella_jax.models.attention import FLASH_TILE

TOPOLOGIES = ("v5e:2x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8")
LENGTHS = (128, 512, 8192)
MAX_RATIO = 1.1  # FLOPs / bound


@dataclass(frozen=True, slots=True)
class Chip:
    """A chip's usable memory and its published peak rates."""

    hbm_gib: float
    bf16_flops: float
    hbm_bytes: float


CHIPS = {
    "v5e": Chip(15.75, 197e12, 819e9),
    "v5p": Chip(95.0, 459e12, 2765e9),
    "v6e": Chip(31.25, 918e12, 1640e9),
}


@dataclass(frozen=True, slots=True)
class Result:
    """A compiled bucket, with FLOPs and bytes of one chip and batch."""

    config: EncoderConfig
    topology: str
    chips: int
    rows: int
    length: int
    seconds: float
    hbm_gib: float
    temporary_gib: float
    kernels: int
    collectives: int
    matmul_flops: int
    kernel_flops: int
    hbm_bytes: int
    moves: int

    @property
    def chip(self) -> Chip:
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def matmuls_of_bound(self) -> float:
        return self.matmul_flops / (linear_flops(self.config) * self.tokens)

    @property
    def attention_of_bound(self) -> float:
        return self.kernel_flops / (attention_flops(self.config, self.length) * self.tokens)

    @property
    def hbm_of_mxu_time(self) -> float:
        """Seconds of memory traffic / seconds of matmuls, each at the chip's peak."""
        flops = self.matmul_flops + self.kernel_flops
        return (self.hbm_bytes / self.chip.hbm_bytes) / (flops / self.chip.bf16_flops)

    def faults(self) -> Iterator[str]:
        """Failed checks, a sentence each."""
        where = f"{self.topology} at {self.rows} x {self.length} tokens"
        if self.collectives:
            yield f"{where}: {self.collectives} collectives; expected none in a data-parallel forward pass."
        if self.hbm_gib > self.chip.hbm_gib:
            yield f"{where}: needs {self.hbm_gib:.1f} GiB of a chip's {self.chip.hbm_gib}; lower the token budget."
        if self.kernels != (expected := int(self.length >= FLASH_TILE)):
            yield f"{where}: {self.kernels} attention kernels in a layer; expected {expected}."
        # Less than the bound means that the count is wrong.
        if not 0.999 <= self.matmuls_of_bound <= MAX_RATIO:
            yield f"{where}: {self.matmuls_of_bound:.3f} times the bound of matmul FLOPs; expected at most {MAX_RATIO}."
        # Other lengths are padded to the kernel's tile.
        if self.length % FLASH_TILE == 0 and not 0.999 <= self.attention_of_bound <= MAX_RATIO:
            ratio = self.attention_of_bound
            yield f"{where}: {ratio:.3f} times the bound of attention FLOPs; expected at most {MAX_RATIO}."

    def cells(self) -> list[object]:
        return [self.topology, self.chips, f"{self.rows} x {self.length}", self.seconds, self.hbm_gib,
                self.temporary_gib, self.kernels, self.collectives, f"{self.matmul_flops / self.tokens / 1e9:.4f}",
                f"{self.matmuls_of_bound:.4f}", f"{self.kernel_flops / self.tokens / 1e9:.4f}",
                f"{self.attention_of_bound:.4f}", self.hbm_bytes / self.tokens / 1e6, self.hbm_of_mxu_time,
                self.moves]  # fmt: skip


COLUMNS = ("topology", "chips", "rows x tokens per chip", "compile s", "HBM GiB per chip", "temporaries GiB",
           "attention kernels", "collectives", "matmul GFLOP/token", "of the bound", "kernel GFLOP/token",
           "of the bound", "HBM MB/token", "HBM / MXU time", "moves per layer")  # fmt: skip
NOTES = """
FLOPs are counted from the optimised program: dots and convolutions as often as their loop runs, the attention kernel by
its cost estimate, which includes the softmax (1 / head_dim). The bounds are {linear:.4f} GFLOP per
token and {attention:,} FLOP times the length; at most {most} times either is allowed. The matmuls
beyond the bound are those of RoPE, which swaps halves of heads in the matrix unit.

HBM MB/token: every instruction reads and writes each of its arrays once, tiles with their padding, VMEM not counted;
repeated reads of the attention kernel are not included. HBM / MXU time: that traffic against those FLOPs, each at the
chip's published bfloat16 peak. Moves: instructions of a layer that only move or convert 1 MiB or more within HBM.

Compile times are from one run each, and noisy.
"""


def measure(config: EncoderConfig, topology: str, length: int, dtype: str) -> Result:
    mesh = data_mesh(get_topology_desc(platform="tpu", topology_name=topology))
    compiled, seconds, rows = compile_for(config, mesh, length, dtype)
    used, temporary = hbm_bytes(compiled)
    program = Program(compiled.as_text() or "")
    return Result(
        config=config,
        topology=topology,
        chips=mesh.size,
        rows=rows,
        length=length,
        seconds=seconds,
        hbm_gib=used / 2**30,
        temporary_gib=temporary / 2**30,
        kernels=len(program.kernels),
        collectives=program.collectives,
        matmul_flops=program.matmul_flops,
        kernel_flops=program.kernel_flops,
        hbm_bytes=program.hbm_bytes,
        moves=len(program.moves),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--length", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    options = parser.parse_args()
    config, results = config_of(options), []
    for topology in options.topology:
        for length in options.length:
            results.append(measure(config, topology, length, options.dtype))
            print(*results[-1].cells(), flush=True)
    bounds = {"linear": linear_flops(config) / 1e9, "attention": attention_flops(config, 1), "most": MAX_RATIO}
    text = table(COLUMNS, [result.cells() for result in results]) + "\n" + NOTES.format(**bounds)
    publish(f"tpu: {options.model}'s encoder, {options.dtype}, compiled ahead of time", text, options.out)
    if faults := [fault for result in results for fault in result.faults()]:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
