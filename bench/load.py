"""Time by stage from a cold start to the first vector, with a warm compile cache, and the host's peak memory.

    python bench/load.py [--checkpoint DIR] [--model M] [--flax DIR] [--repeats N] [--dtype D] [--out FILE]

Each measurement is a process of its own; they take turns, and numbers are medians. The peer is sentence-transformers
on the same file (needs the test extra on Python 3.11). Files are in the page cache. A peak is the highest resident
memory so far divided by the size of the weights; a job also computes the fingerprint. If other work runs on the
machine, CPU seconds (of all threads) are more reliable than wall seconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from checkpoint import add_model, config_of, write_checkpoint
from inputs import size_of
from report import publish, table

TEXT = "What are some ways to reduce stress?"
START = """
import json, sys, time
from pathlib import Path
path, cache, dtype, stages = sys.argv[1], sys.argv[2], sys.argv[3], []
seconds, processor = time.perf_counter(), 0.0
def stage(name):
    global seconds, processor
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    stages.append([name, time.perf_counter() - seconds, time.process_time() - processor, peak])
    seconds, processor = time.perf_counter(), time.process_time()
"""
OURS = """
import jax
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
from stella_jax.embedder import Stella
from stella_jax.checkpoint.fingerprint import fingerprint
stage("import")
model = Stella.from_pretrained(path, dtype=dtype)
stage("load")
model.encode({text!r})
stage("first vector")
fingerprint(model.checkpoint, model.heads)
stage("fingerprint")
print(json.dumps(stages))
"""
PEER = """
import torch
from sentence_transformers import SentenceTransformer
stage("import")
model = SentenceTransformer(path, device="cpu", model_kwargs=dict(dtype=getattr(torch, dtype)), local_files_only=True)
stage("load")
model.encode({text!r})
stage("first vector")
print(json.dumps(stages))
"""


class Stage(NamedTuple):
    """A stage of a run: wall and CPU seconds, and the process's peak memory so far in bytes."""

    name: str
    seconds: float
    processor: float
    peak: int


Stages = list[Stage]


def run(script: str, path: Path, cache: Path, dtype: str) -> Stages:
    """Runs a script in a process; returns its stages."""
    command = [sys.executable, "-c", START + script.format(text=TEXT), str(path), str(cache), dtype]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(process.stderr)
    return [Stage(*stage) for stage in json.loads(process.stdout.splitlines()[-1])]


def measure(runs: dict[str, tuple[str, Path]], cache: Path, dtype: str, size: int, repeats: int) -> list[list[object]]:
    """A row for each run: wall (CPU) seconds and peak of each stage, and of all up to the first vector."""
    found: dict[str, list[Stages]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, (script, path) in runs.items():
            stages = run(script, path, cache, dtype)
            if turn:  # the first fills the caches
                found[name].append(stages)
    return [[name, *_cells(turns, size)] for name, turns in found.items()]


def _cells(turns: list[Stages], size: int) -> list[object]:
    start = [[stage for stage in turn if stage.name != "fingerprint"] for turn in turns]
    cells = {"to first vector": _seconds(start)}
    for number, stage in enumerate(turns[0]):
        peak = statistics.median(turn[number].peak for turn in turns)
        cells[stage.name] = _seconds([[turn[number]] for turn in turns])
        cells[f"peak: {stage.name}"] = f"{peak / size:.2f}"
    return [cells.get(name, "-") for name in COLUMNS[1:]]


def _seconds(turns: list[Stages]) -> str:
    seconds = statistics.median(sum(stage.seconds for stage in turn) for turn in turns)
    processor = statistics.median(sum(stage.processor for stage in turn) for turn in turns)
    return f"{seconds:.2f} ({processor:.2f})"


COLUMNS = [
    "system",
    "import",
    "load",
    "first vector",
    "to first vector",
    "fingerprint",
    "peak: load",
    "peak: first vector",
    "peak: fingerprint",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="keep the random checkpoint here, or find it here")
    add_model(parser)
    parser.add_argument("--flax", type=Path, help="the checkpoint in the Flax layout; written if it does not exist")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the table to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        torch = write_checkpoint(options.checkpoint or Path(scratch) / "model", config_of(options))
        flax = options.flax or Path(scratch) / "flax"
        if not flax.exists():
            subprocess.run([sys.executable, "-m", "convert", str(torch), str(flax)], check=True)
        runs = {"PyTorch layout": (OURS, torch), "Flax layout": (OURS, flax)}
        note = "\n\nsentence-transformers is left out, as it is not installed."
        if find_spec("sentence_transformers"):
            runs["sentence-transformers"], note = (PEER, torch), ""
        size = (torch / "model.safetensors").stat().st_size
        rows = measure(runs, Path(scratch) / "cache", options.dtype, size, options.repeats)
        stored = f"{size_of(torch)} parameters stored in float32"
    title = f"load: {stored}, compute dtype {options.dtype}; wall (CPU) seconds"
    publish(title, table(COLUMNS, rows) + note, options.out)


if __name__ == "__main__":
    main()
