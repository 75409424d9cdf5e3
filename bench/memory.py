"""Peak memory of embedding texts of 512, 2048 and 8192 tokens, beyond the model itself.

    python bench/memory.py [--length 512 2048 8192] [--dtype D] [--peers sentence-transformers] [--out FILE]

Each measurement is a process of its own: it loads the model, resets the peak, embeds (compilation included), and reads
the peak of its resident memory, or on an accelerator of the device's memory. "Beyond the model" subtracts the weights
in the compute dtype; on a CPU it includes Python, JAX and its compiler. The target is 4 GB at 8192 tokens.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from inputs import checkpoint, corpus_texts, long_texts, parser_of, size_of
from report import publish, table
from systems import PEERS, LeftOutError, stella_jax

from stella_jax import Stella

LENGTHS = (512, 2048, 8192)
OURS = "stella-jax"
TARGET = 4e9
COLUMNS = ("system", "texts", "model GB", "GB after loading", "peak GB", "GB beyond the model", "of 4 GB")


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` is the current size, `VmHWM` the peak since its start or `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> None:
    """Resets `VmHWM` to the current size (`man 5 proc_pid_clear_refs`)."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(*, peak: bool) -> int:
    """Current or peak bytes of an accelerator's memory, or on a CPU of resident memory (peak since `reset_peak`)."""
    stats = jax.devices()[0].memory_stats()
    if stats is None:
        return resident("VmHWM" if peak else "VmRSS")
    return stats["peak_bytes_in_use" if peak else "bytes_in_use"]


def measure(name: str, directory: Path, texts: list[str], length: int, dtype: str) -> list[int]:
    """Bytes of the model, of memory after loading, and of peak memory while the texts are embedded."""
    if name == OURS:
        model = Stella.from_pretrained(directory, dtype=dtype)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.runner.state))
        system = stella_jax(model)
    elif jax.default_backend() != "cpu":
        raise LeftOutError(f"{name}: its accelerator memory cannot be measured here")
    else:
        size = (directory / "model.safetensors").stat().st_size * (2 if dtype == "bfloat16" else 4) // 4
        system = PEERS[name](directory, dtype)
    if reason := system.too_large(len(texts), length):
        raise LeftOutError(reason)
    loaded = memory(peak=False)
    reset_peak()
    system.encode(texts, length)
    return [size, loaded, memory(peak=True)]


def in_a_process(name: str, directory: Path, length: int, options: argparse.Namespace) -> list[object] | str:
    """A row of the table, measured in a process of its own, or a sentence why there is none."""
    command = [sys.executable, __file__, "--checkpoint", str(directory), "--corpus", str(options.corpus)]
    command += ["--texts", str(options.texts), "--dtype", options.dtype, "--length", str(length), "--measure", name]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return f"{name} has no row at {length} tokens: {reason.removesuffix('.')}."
    size, loaded, peak = json.loads(process.stdout.splitlines()[-1])
    cells = [each / 1e9 for each in (size, loaded, peak, peak - size)]
    return [name, f"{options.texts} x {length} tokens", *cells, (peak - size) / TARGET]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--length", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--texts", type=int, default=2, help="texts of each length")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=["sentence-transformers"])
    parser.add_argument("--measure", choices=[OURS, *PEERS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    with checkpoint(options) as directory:
        if options.measure:
            print_measured(options, directory)
        else:
            compare([OURS, *options.peers], directory, options)


def print_measured(options: argparse.Namespace, directory: Path) -> None:
    """Measures one system in this process and prints the result as JSON."""
    [length] = options.length
    try:
        texts = long_texts(corpus_texts(options.corpus, 2000), options.texts, length)
        print(json.dumps(measure(options.measure, directory, texts, length, options.dtype)))
    except LeftOutError as reason:
        raise SystemExit(str(reason)) from None


def compare(names: Sequence[str], directory: Path, options: argparse.Namespace) -> None:
    """Measures all systems and publishes the table."""
    found = [in_a_process(name, directory, length, options) for length in options.length for name in names]
    rows = [each for each in found if not isinstance(each, str)]
    sentences = [each for each in found if isinstance(each, str)]
    title = f"memory: {size_of(directory)}, {options.dtype}"
    publish(title, "\n\n".join([table(COLUMNS, rows), *sentences]), options.out)


if __name__ == "__main__":
    main()
