"""Runs the benchmarks that suit this machine and writes one dated file of tables and a picture beside it.

    python bench/run.py [NAME ...] [--small] [--folder bench/results] [--work build/bench]

Without names: limits, load, latency, encode, quality, job, in less than half an hour on two cores; memory, convert,
train and mine run when they are named. On an accelerator the peers that only know a CPU are left out. Checkpoints are
kept in the work folder. A script that fails is named, the others go on, and the exit code is 1.
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

# What a script is given beside the checkpoint, by platform; "small" is to try it.
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
    "train": {"cpu": "", "accelerator": "--dtype bfloat16 --alone", "small": "--batch-size 2 --steps 1 --repeats 1"},
}


def commands(names: Sequence[str], kind: str, checkpoint: Path, out: Path) -> dict[str, list[str]]:
    """Name -> the command that appends its table to `out`."""
    common = ["--checkpoint", str(checkpoint), "--out", str(out)]
    flax = ["--flax", str(checkpoint.with_name(f"{checkpoint.name}-flax"))]
    return {
        name: [f"bench/{name}.py", *ARGUMENTS[name][kind].split(), *common, *(flax if name == "load" else [])]
        for name in names
    }


def run(commands: Mapping[str, Sequence[str]], out: Path) -> list[str]:
    """Runs each command with this Python in the repository's root; returns the names of those that failed."""
    failed = []
    for name, command in commands.items():
        print(f"== {name}: python {' '.join(command)}", flush=True)
        begin = time.monotonic()
        code = subprocess.run([sys.executable, *command], cwd=BENCH.parent, check=False).returncode
        print(f"== {name}: {time.monotonic() - begin:.0f} s, exit code {code}", flush=True)
        if code:
            failed.append(name)
            with out.open("a") as file:
                file.write(f"## {name}: failed\n\n`python {' '.join(command)}` ended with exit code {code}.\n\n")
    return failed


def device() -> tuple[str, str]:
    """JAX's platform and the device's name for a file, asked in a process that ends: it may take all of the memory."""
    script = "import jax, report; print(jax.default_backend(), report.device_slug())"
    process = subprocess.run([sys.executable, "-c", script], cwd=BENCH, check=True, capture_output=True, text=True)
    platform, slug = process.stdout.split()[-2:]
    return platform, slug


def new_file(folder: Path, slug: str) -> Path:
    """A name that is not taken: `2026-01-31-nvidia-h200.md`, then `-2.md` and so on."""
    stem, number = f"{time.strftime('%Y-%m-%d')}-{slug}", 2
    file = folder / f"{stem}.md"
    while file.exists():
        file, number = folder / f"{stem}-{number}.md", number + 1
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ARGUMENTS)}")
    parser.add_argument("--small", action="store_true", help="a small encoder and few texts, to try the scripts")
    parser.add_argument("--folder", type=Path, default=Path("bench/results"), help="of the file and the picture")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where the checkpoints are kept")
    options = parser.parse_args()
    names = options.names or list(DEFAULT)
    if unknown := [name for name in names if name not in ARGUMENTS]:
        parser.error(f"there is no benchmark {unknown[0]}; there are {', '.join(ARGUMENTS)}")
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
        raise SystemExit(f"{', '.join(failed)} failed; what they said is above.")


if __name__ == "__main__":
    main()
