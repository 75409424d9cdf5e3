"""curves.png: loss and accuracies of a run over its steps; needs the extra `plot`."""

import importlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.metrics import Line, Metrics

FILE = "curves.png"
NO_PLOT = f"no {FILE}: matplotlib is not installed; pip install 'stella-jax[plot]'."
POINTS = 200  # of the training loss; more are averaged

# Loss has an axis of its own.
SHOWN = ("cosine_accuracy", "euclidean_accuracy", "cosine_mrr@10", "cosine_ndcg@10")


def missing_plot_library() -> str | None:
    """The sentence for a user without matplotlib; None if it is installed."""
    return None if _figure_module() else NO_PLOT


def draw(metrics: Metrics, path: Path) -> bool:
    """Writes the plot in place of the base's; returns False if matplotlib is not installed."""
    path.unlink(missing_ok=True)
    figure_module = _figure_module()
    if figure_module is None:
        return False
    figure = figure_module.Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, metrics)
    _draw_scores(right, metrics)
    figure.savefig(path, dpi=110)
    return True


def _figure_module() -> Any:
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError:
        return None


def _draw_loss(axes: Any, metrics: Metrics) -> None:
    steps, losses = averaged(metrics.steps())
    axes.plot(steps, losses, label="training")
    evaluations = [line for line in metrics.evaluations("eval") if line["eval"].get("loss") is not None]
    if evaluations:
        axes.plot([e["step"] for e in evaluations], [e["eval"]["loss"] for e in evaluations], "o-", label="evaluation")
    axes.set(xlabel="step", title="loss")
    axes.legend()


def _draw_scores(axes: Any, metrics: Metrics) -> None:
    for split, style in (("eval", "o-"), ("test", "s--")):
        lines = metrics.evaluations(split)
        for name in SHOWN if lines else ():
            points = [(line["step"], line[split][name]) for line in lines if line[split].get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=f"{split} {name}")
    axes.set(xlabel="step", title="scores")
    if axes.lines:
        axes.legend()


def averaged(lines: Sequence[Line]) -> tuple[list[float], list[float]]:
    """Steps and losses, neighbours averaged where there are more than a plot shows."""
    lines = [line for line in lines if line["loss"] is not None]
    width = -(-len(lines) // POINTS) or 1
    groups = [lines[start : start + width] for start in range(0, len(lines), width)]
    means = ([statistics.fmean(line[key] for line in group) for group in groups] for key in ("step", "loss"))
    steps, losses = means
    return steps, losses
