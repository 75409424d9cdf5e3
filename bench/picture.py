"""Plots tokens per second over the length of the texts, from encode.py's tables in a results file.

    python bench/picture.py RESULTS.md PICTURE.svg [--dtype D]

Needs matplotlib (extra `plot`).
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from report import read_tables

WORKLOAD = re.compile(r"\d+ x (\d+) tokens")
ROOFLINE = "roofline"
# Color-blind safe (Okabe and Ito).
STYLES = {
    "stella-jax": {"color": "#0072b2", "linewidth": 2.4},
    "OpenVINO": {"color": "#009e73"},
    "ONNX Runtime": {"color": "#e69f00"},
    "sentence-transformers": {"color": "#cc79a7"},
    ROOFLINE: {"color": "#666666", "linestyle": "--", "marker": ""},
}

# System -> length -> tokens per second.
Rates = dict[str, dict[int, float]]


def rates_of(text: str, dtype: str | None = None) -> tuple[Rates, str]:
    """Rates of the workloads with one length in a results file, and their dtype, by default the first in the file.

    Raises:
      ValueError: there are no such workloads.
    """
    rates: Rates = defaultdict(dict)
    for title, rows in read_tables(text):
        if not title.startswith("encode:"):
            continue
        for row in rows:
            found = WORKLOAD.fullmatch(row.get("workload", ""))
            if found and "system" in row and (dtype := dtype or row["dtype"]) == row["dtype"]:
                rates[row["system"]][int(found[1])] = float(row["tok/s"])
    if not rates or dtype is None:
        raise ValueError("no table of encode.py with texts of one length; run bench/encode.py with --length")
    return dict(rates), dtype


def draw(rates: Rates, title: str, file: Path) -> None:
    """Writes the plot, as SVG or PNG by the file's name."""
    import matplotlib
    from matplotlib.figure import Figure

    lengths = sorted({length for series in rates.values() for length in series})
    # Keep text as text, and make the file deterministic.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stella-jax", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes: Any = figure.subplots()
        for name in sorted(rates, key=lambda name: -max(rates[name].values())):
            series = sorted(rates[name].items())
            axes.plot(*zip(*series, strict=True), label=name, **{"marker": "o"} | STYLES.get(name, {}))
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, map(str, lengths))
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set(xlabel="tokens per text", ylabel="tokens per second", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a results file")
    parser.add_argument("picture", type=Path, help="the .svg or .png to write")
    parser.add_argument("--dtype", help="dtype to plot (default: the first in the file)")
    options = parser.parse_args()
    try:
        rates, dtype = rates_of(options.results.read_text(), options.dtype)
    except ValueError as error:
        raise SystemExit(f"{options.results}: {error}.") from None
    draw(rates, f"Tokens per second by length, {dtype}", options.picture)


if __name__ == "__main__":
    main()
