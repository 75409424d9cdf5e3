"""Plot of a run's loss and scores over its steps, curves.png; needs the extra `plot`."""

import importlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from train.metrics import MetricsLog

FILE = "curves.png"
NO_PLOT = f"no {FILE}: matplotlib is not installed; pip install 'stella-jax[plot]'."
SPAN = 0.1  # of all steps, over which the training loss is smoothed

TRAINING = "C0"
STYLES = (("eval", "C1", "o-"), ("test", "C2", "s"))  # split, color of its loss, line
SHOWN = ("cosine_accuracy", "cosine_accuracy@1", "cosine_recall@10", "cosine_mrr@10", "cosine_ndcg@10")


def missing_plot_library() -> str | None:
    """A warning if matplotlib is not installed; else None."""
    return None if _figure_module() else NO_PLOT


def draw(metrics: MetricsLog, path: Path, best: str | None = None) -> bool:
    """Writes the plot to `path`, replacing the base model's; returns False if matplotlib is not installed.

    Args:
      best: a score to plot in addition to `SHOWN`.
    """
    path.unlink(missing_ok=True)
    figure_module = _figure_module()
    if figure_module is None:
        return False
    figure = figure_module.Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, metrics)
    _draw_scores(right, metrics, best)
    figure.savefig(path, dpi=110)
    return True


def _figure_module() -> Any:
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError:
        return None


def _draw_loss(axes: Any, metrics: MetricsLog) -> None:
    """Plots the loss of each step, pale, its smoothed curve, and evaluation losses; only the last two set the scale."""
    steps = [line for line in metrics.steps() if line["loss"] is not None]
    numbers, losses = [line["step"] for line in steps], [line["loss"] for line in steps]
    smooth = smoothed(losses)
    axes.plot(numbers, losses, ".", markersize=3, alpha=0.3, color=TRAINING, label="training, each step")
    axes.plot(numbers, smooth, color=TRAINING, label="training, smoothed")
    shown = smooth
    for split, color, style in STYLES:
        found = _points(metrics, split, "loss")
        if found:
            axes.plot(*zip(*found, strict=True), style, color=color, label=split)
            shown = [*shown, *(loss for _, loss in found)]
    if shown:
        least, most = min(shown), max(shown)
        room = 0.05 * (most - least) or 0.05
        axes.set_ylim(least - room, most + room)
    axes.set(xlabel="step", ylabel="loss", title="loss")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_scores(axes: Any, metrics: MetricsLog, best: str | None) -> None:
    """Plots scores of eval as lines, and of test as squares of the same color."""
    names = [name for name in dict.fromkeys((*SHOWN, *([best] if best else []))) if name != "loss"]
    for split, _, style in STYLES:
        for i, name in enumerate(names):
            if found := _points(metrics, split, name):
                axes.plot(*zip(*found, strict=True), style, color=f"C{i + 3}", label=f"{split} {name}")
    axes.set(xlabel="step", title="scores")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def _points(metrics: MetricsLog, split: str, name: str) -> list[tuple[int, float]]:
    lines = metrics.evaluations(split)
    return [(line["step"], line[split][name]) for line in lines if line[split].get(name) is not None]


def smoothed(values: Sequence[float]) -> list[float]:
    """The moving average over a window of SPAN of all values, centered on each."""
    count, width = len(values), round(len(values) * SPAN / 2)
    total = [0.0, *accumulate(values)]
    windows = [(max(0, i - width), min(count, i + width + 1)) for i in range(count)]
    return [(total[end] - total[start]) / (end - start) for start, end in windows]
