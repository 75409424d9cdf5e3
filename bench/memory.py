"""Memory that embedding texts of 512, 2048 and 8192 tokens takes at most, beyond the model itself.

    python bench/memory.py [--length 512 2048 8192] [--dtype D] [--peers sentence-transformers] [--out FILE]

Each measurement is a process of its own: it loads, forgets the peak so far, embeds (compiling included), and reads the
peak of its resident memory; on an accelerator the peak of the device's. Beyond the model: less the bytes of the weights
in the type that is computed in. On a CPU that holds Python, JAX and its compiler too. 8192 tokens are to take 4 GB.
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
ALLOWED = 4e9
COLUMNS = ("system", "texts", "GB of the model", "GB after loading", "GB at most", "beyond the model", "of 4 GB")


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most since it began or forgot."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Lets `VmHWM` begin anew (`man 5 proc_pid_clear_refs`)."""
    Path("/proc/self/clear_refs").write_text("5")


def held(*, at_most: bool) -> int:
    """Bytes of an accelerator's memory, now or at most; on a CPU resident ones, now or at most since `forget_peak`."""
    stats = jax.devices()[0].memory_stats()
    if stats is None:
        return resident("VmHWM" if at_most else "VmRSS")
    return stats["peak_bytes_in_use" if at_most else "bytes_in_use"]


def measure(name: str, directory: Path, texts: list[str], length: int, dtype: str) -> list[int]:
    """Bytes of the model, after loading, and at most while the texts are embedded."""
    if name == OURS:
        model = Stella.from_pretrained(directory, dtype=dtype)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.runner.state))
        system = stella_jax(model)
    elif jax.default_backend() != "cpu":
        raise LeftOutError(f"{name} holds its memory on an accelerator where this script does not see it")
    else:
        size = (directory / "model.safetensors").stat().st_size * (2 if dtype == "bfloat16" else 4) // 4
        system = PEERS[name](directory, dtype)
    if reason := system.too_large(len(texts), length):
        raise LeftOutError(reason)
    loaded = held(at_most=False)
    forget_peak()
    system.encode(texts, length)
    return [size, loaded, held(at_most=True)]


def in_a_process(name: str, directory: Path, length: int, options: argparse.Namespace) -> list[object] | str:
    """A row of the table, or why there is none."""
    command = [sys.executable, __file__, "--checkpoint", str(directory), "--corpus", str(options.corpus)]
    command += ["--texts", str(options.texts), "--dtype", options.dtype, "--length", str(length), "--measure", name]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
        return f"{name} has no row at {length} tokens: {reason.removesuffix('.')}."
    size, loaded, most = json.loads(process.stdout.splitlines()[-1])
    cells = [each / 1e9 for each in (size, loaded, most, most - size)]
    return [name, f"{options.texts} x {length} tokens", *cells, (most - size) / ALLOWED]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--length", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--texts", type=int, default=2, help="of each length")
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
    """What one process sees."""
    [length] = options.length
    try:
        texts = long_texts(corpus_texts(options.corpus, 2000), options.texts, length)
        print(json.dumps(measure(options.measure, directory, texts, length, options.dtype)))
    except LeftOutError as reason:
        raise SystemExit(str(reason)) from None


def compare(names: Sequence[str], directory: Path, options: argparse.Namespace) -> None:
    """Publishes the table."""
    found = [in_a_process(name, directory, length, options) for length in options.length for name in names]
    rows = [each for each in found if not isinstance(each, str)]
    sentences = [each for each in found if isinstance(each, str)]
    title = f"memory: {size_of(directory)}, {options.dtype}"
    publish(title, "\n\n".join([table(COLUMNS, rows), *sentences]), options.out)


if __name__ == "__main__":
    main()
