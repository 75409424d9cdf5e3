"""Runs the benchmarks for this machine, and writes a dated file of tables and a plot.

    python bench/run.py [NAME ...] [--small] [--folder bench/results] [--work build/bench]

Without names it runs limits, load, latency, encode, quality and job, in less than half an hour on two cores; memory,
convert, train, mine, rerank, host and planning must be named. (tpu and gpu need environments of their own: make
tpu-check, make gpu-check.) On an accelerator, peers that support only the CPU are left out. Checkpoints are kept in the
work folder. If a script fails, the others still run, and the exit code is 1.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from checkpoint import SMALL, STELLA, write_checkpoint

BENCH = Path(__file__).parent
DEFAULT = ("limits", "load", "latency", "encode", "quality", "job")
OWN_INPUTS = ("mine", "rerank", "host", "planning")  # no random checkpoint of stella's size

# Arguments of each script besides the checkpoint and the file of tables, by platform; "small" is for trying it out.
ARGUMENTS: dict[str, dict[str, str]] = {
    "limits": {"cpu": "", "accelerator": "", "small": "--texts 500 --length 128"},
    "load": {"cpu": "--repeats 1", "accelerator": "--repeats 1 --dtype bfloat16", "small": "--repeats 1"},
    "latency": {
        "cpu": "--repeats 40",
        "accelerator": "--repeats 200 --dtype bfloat16 float32",
        "small": "--repeats 5",
    },
    "encode": {
        "cpu": "--dtype float32 bfloat16 --texts 48 --repeats 1",
        "accelerator": "--dtype bfloat16 float32 --repeats 3",
        "small": "--dtype float32 --texts 8 --length 32 128 --repeats 1",
    },
    "quality": {"cpu": "--texts 100", "accelerator": "--texts 2000", "small": "--texts 20"},
    "job": {
        "cpu": "--only job commit --texts 64 --part-rows 32 --repeats 1",
        "accelerator": "--only job commit plan --texts 20000 --part-rows 4096 --repeats 1",
        "small": "--only job commit --texts 16 --part-rows 8 --repeats 1",
    },
    "memory": {"cpu": "", "accelerator": "--dtype bfloat16", "small": "--length 64 --texts 1"},
    "convert": {"cpu": "", "accelerator": "", "small": ""},
    "mine": {"cpu": "", "accelerator": "", "small": "--rows 5000 --anchors 1000"},
    "rerank": {
        "cpu": "",
        "accelerator": "--layers 12 --pairs 2000 --dtype bfloat16",
        "small": "--layers 1 --pairs 8 --repeats 1",
    },
    "host": {"cpu": "", "accelerator": "", "small": "--tokens 100000 --repeats 1"},
    "planning": {"cpu": "", "accelerator": "", "small": "--inputs 1000 --ids 100000 --repeats 1"},
    "train": {"cpu": "", "accelerator": "--dtype bfloat16 --alone", "small": "--batch-size 2 --steps 1 --repeats 1"},
}


def commands(names: Sequence[str], kind: str, checkpoint: Path, out: Path) -> dict[str, list[str]]:
    """Name -> command, which appends its table to `out`."""
    flax = ["--flax", str(checkpoint.with_name(f"{checkpoint.name}-flax"))]
    inputs = {name: [] if name in OWN_INPUTS else ["--checkpoint", str(checkpoint)] for name in names}
    return {
        name: [
            f"bench/{name}.py",
            *ARGUMENTS[name][kind].split(),
            *inputs[name],
            *("--out", str(out)),
            *(flax if name == "load" else []),
        ]
        for name in names
    }


def run(commands: Mapping[str, Sequence[str]], out: Path) -> list[str]:
    """Runs commands with this Python in the repository's root; returns the names of the failed ones."""
    failed = []
    for name, command in commands.items():
        print(f"== {name}: python {' '.join(command)}", flush=True)
        start = time.monotonic()
        code = subprocess.run([sys.executable, *command], cwd=BENCH.parent, check=False).returncode
        print(f"== {name}: {time.monotonic() - start:.0f} s, exit code {code}", flush=True)
        if code:
            failed.append(name)
            with out.open("a") as file:
                file.write(f"## {name}: failed\n\n`python {' '.join(command)}` ended with exit code {code}.\n\n")
    return failed


def device() -> tuple[str, str]:
    """JAX's platform and `device_slug`, from a process of its own, as JAX may reserve all of a device's memory."""
    script = "import jax, report; print(jax.default_backend(), report.device_slug())"
    process = subprocess.run([sys.executable, "-c", script], cwd=BENCH, check=True, capture_output=True, text=True)
    platform, slug = process.stdout.split()[-2:]
    return platform, slug


def new_file(folder: Path, slug: str) -> Path:
    """A file that does not exist: `2026-01-31-nvidia-h200.md`, else `-2.md` and so on."""
    stem, number = f"{time.strftime('%Y-%m-%d')}-{slug}", 2
    file = folder / f"{stem}.md"
    while file.exists():
        file, number = folder / f"{stem}-{number}.md", number + 1
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks: {', '.join(ARGUMENTS)}")
    parser.add_argument("--small", action="store_true", help="use a small encoder and few texts, to try the scripts")
    parser.add_argument("--folder", type=Path, default=Path("bench/results"), help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder of the checkpoints")
    options = parser.parse_args()
    names = options.names or list(DEFAULT)
    if unknown := [name for name in names if name not in ARGUMENTS]:
        parser.error(f"unknown benchmark {unknown[0]}; choose from {', '.join(ARGUMENTS)}")
    platform, slug = device()
    kind = "small" if options.small else "cpu" if platform == "cpu" else "accelerator"
    checkpoint = options.work / ("small" if options.small else "stella")
    write_checkpoint(checkpoint, SMALL if options.small else STELLA)
    out = new_file(options.folder, slug)
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = run(commands(names, kind, checkpoint, out), out)
    if "encode" in names and "encode" not in failed:
        picture = {"picture": ["bench/picture.py", str(out), str(out.with_suffix(".svg"))]}
        failed += run(picture, out)
    print(f"== {out}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; their output is above.")


if __name__ == "__main__":
    main()
