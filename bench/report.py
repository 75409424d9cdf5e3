"""Tables of benchmark results: where they ran, with which versions, one row a measurement."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "orbax-checkpoint", "torch", "transformers", "sentence-transformers")


def machine() -> str:
    """Device, cores, Python and versions, in a line."""
    device = jax.devices()[0]
    name = _cpu_name() if device.platform == "cpu" else f"{device.device_kind} on {_cpu_name()}"
    versions = ", ".join(f"{package} {_version(package)}" for package in PACKAGES if _version(package))
    return f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}; {versions}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats with three significant digits or one decimal."""
    cells = [list(columns), ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def publish(title: str, text: str, out: Path | None) -> None:
    """Prints a result under its command and machine, and appends it to a file of bench/results."""
    command = f"python {' '.join(sys.argv)}"
    whole = f"## {title}\n\n{time.strftime('%Y-%m-%d')}; `{command}`\n\n{machine()}\n\n{text}\n"
    print(whole)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(whole + "\n")


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run, after one warm-up (compilation) each, taken in turns against drifting clocks."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
