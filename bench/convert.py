"""Time and peak memory of converting a full-size checkpoint, and of a first embedding after a cold start.

    python bench/convert.py [--checkpoint DIR] [--model M] [--out FILE]

Each measurement is a process of its own. Peak memory is compared with the file's size, and loading with
sentence-transformers on the same weights (needs the test extra on Python 3.11).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkpoint import add_model, config_of, write_checkpoint
from inputs import size_of
from report import publish, table

FIRST_EMBEDDING = """
import jax, sys
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
from stella_jax import Stella
Stella.from_pretrained(sys.argv[1], dtype="float32").encode("What are some ways to reduce stress?")
"""
PEER = """
import sys
from sentence_transformers import SentenceTransformer
SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True).encode("What are some ways to reduce stress?")
"""


def measured(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident MiB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def measure(source: Path, scratch: Path) -> list[list[object]]:
    python, size = sys.executable, (source / "model.safetensors").stat().st_size / 2**20
    flax, torch, cache = scratch / "flax", scratch / "torch", scratch / "cache"
    runs = {
        "convert to Flax": [python, "-m", "convert", str(source), str(flax)],
        "convert back to torch": [python, "-m", "convert", str(flax), str(torch), "--to", "torch"],
        "first embedding, torch layout, cold compile cache": [python, "-c", FIRST_EMBEDDING, str(source), str(cache)],
        "first embedding, torch layout, warm compile cache": [python, "-c", FIRST_EMBEDDING, str(source), str(cache)],
        "first embedding, Flax layout, warm compile cache": [python, "-c", FIRST_EMBEDDING, str(flax), str(cache)],
        "first embedding, sentence-transformers": [python, "-c", PEER, str(source)],
    }
    rows: list[list[object]] = []
    for name, command in runs.items():
        seconds, peak = measured(command)
        rows.append([name, seconds, peak, peak / size])
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="the random checkpoint; written if it does not exist")
    add_model(parser)
    parser.add_argument("--out", type=Path, help="append the table to this file")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    try:
        source = write_checkpoint(options.checkpoint or scratch / "model", config_of(options))
        rows, size = measure(source, scratch), size_of(source)
    finally:
        shutil.rmtree(scratch)
    columns = ["task", "seconds", "peak RSS (MiB)", "peak / file size"]
    publish(f"convert: {size} parameters, float32", table(columns, rows), options.out)


if __name__ == "__main__":
    main()
