"""Benchmark results as Markdown tables with machine and versions: writing and reading them."""

import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "orbax-checkpoint",
    "torch",
    "transformers",
    "sentence-transformers",
    "onnxruntime",
    "openvino",
)

Row = dict[str, str]


def machine() -> str:
    """Device, cores, Python and versions in one line."""
    name = _cpu_name() if jax.default_backend() == "cpu" else f"{jax.devices()[0].device_kind} on {_cpu_name()}"
    versions = ", ".join(f"{package} {_version(package)}" for package in PACKAGES if _version(package))
    return f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}; {versions}"


def device_slug() -> str:
    """The device's name for a file name, such as `amd-epyc-cpu` or `nvidia-h200`."""
    cpu = jax.default_backend() == "cpu"
    name = f"{_cpu_name()} cpu" if cpu else jax.devices()[0].device_kind
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats have three significant digits or one decimal."""
    cells = [list(columns), ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def read_tables(text: str) -> Iterator[tuple[str, list[Row]]]:
    """Yields (title, rows as dicts) of each table of a results file; of columns with the same name the last counts."""
    title, lines = "", list[str]()
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
            continue
        if lines:
            columns, _, *rows = ([cell.strip() for cell in each.split("|")[1:-1]] for each in lines)
            yield title, [dict(zip(columns, row, strict=True)) for row in rows]
            lines = []
        if line.startswith("## "):
            title = line.removeprefix("## ")


def publish(title: str, text: str, out: Path | None) -> None:
    """Prints a result with its command and machine, and appends it to `out`."""
    command = f"python {' '.join(sys.argv)}"
    whole = f"## {title}\n\n{time.strftime('%Y-%m-%d')}; `{command}`\n\n{machine()}\n\n{text}\n"
    print(whole)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(whole + "\n")


def timings(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run after one warm-up each; runs take turns, so that clock drift affects all alike."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run, as measured by `timings`."""
    return {name: statistics.median(seconds) for name, seconds in timings(runs, repeats).items()}
