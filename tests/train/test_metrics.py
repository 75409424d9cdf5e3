"""metrics.jsonl: its lines, the lines that a resumed run keeps, and the plot."""

import json
import sys
from pathlib import Path

import pytest

from train import curves
from train.metrics import MetricsLog, read_metrics


def step(number: int, loss: float = 1.0) -> dict:
    return {"step": number, "epoch": number / 10, "loss": loss, "learning_rate": 1e-3}


def evaluation(number: int, score: float, split: str = "eval") -> dict:
    return {"step": number, "epoch": number / 10, split: {"loss": 1.0, "cosine_accuracy": score}}


def written(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """With the lines of a run of three steps."""
    with MetricsLog(tmp_path, 0) as metrics:
        for line in (evaluation(0, 0.5), step(1), step(2), evaluation(2, 0.7), evaluation(2, 0.6, "test"), step(3)):
            metrics.write(line)
    return tmp_path


def test_a_line_is_flushed(tmp_path):
    with MetricsLog(tmp_path, 0) as metrics:
        metrics.write(step(1))
        assert written(tmp_path) == [step(1)]


def test_lines_by_kind(output):
    with MetricsLog(output, 3) as metrics:
        assert [line["step"] for line in metrics.steps()] == [1, 2, 3]
        assert [line["step"] for line in metrics.evaluations("eval")] == [0, 2]
        assert metrics.evaluation("eval", 2) == {"loss": 1.0, "cosine_accuracy": 0.7}
        assert metrics.evaluation("test", 2) == {"loss": 1.0, "cosine_accuracy": 0.6}
        assert metrics.evaluation("test", 0) is None


def test_a_resumed_run_drops_later_lines(output):
    with MetricsLog(output, 2) as metrics:
        metrics.write(step(3, loss=0.5))
    assert [(line["step"], line.get("loss")) for line in written(output)] == [
        (0, None),
        (1, 1.0),
        (2, 1.0),
        (2, None),
        (2, None),
        (3, 0.5),
    ]


def test_a_new_run_starts_an_empty_file(output):
    with MetricsLog(output, 0):
        pass
    assert written(output) == []


def test_a_line_cut_by_a_kill_ends_the_file(output):
    with (output / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "ep')
    with MetricsLog(output, 9) as metrics:
        metrics.write(step(4))
    assert [line["step"] for line in written(output)] == [0, 1, 2, 2, 2, 3, 4]
    assert list(read_metrics(output / "none.jsonl")) == []


def test_nan_is_null(tmp_path):
    with MetricsLog(tmp_path, 0) as metrics:
        metrics.write({"step": 1, "loss": float("nan"), "eval": {"pearson": float("inf")}})
    assert written(tmp_path) == [{"step": 1, "loss": None, "eval": {"pearson": None}}]


def test_writers_get_every_number_and_are_closed(tmp_path):
    written = []

    class Writer:
        def write(self, step, values):
            written.append((step, values))

        def close(self, failed):
            written.append(failed)

    with MetricsLog(tmp_path, 0, writers=[Writer()]) as metrics:
        metrics.write({"step": 3, "epoch": 0.5, "loss": 2.0})
        metrics.write({"step": 3, "epoch": 0.5, "eval": {"cosine_accuracy": 0.75}})
    assert written == [
        (3, {"train/epoch": 0.5, "train/loss": 2.0}),
        (3, {"train/epoch": 0.5, "eval/cosine_accuracy": 0.75}),
        False,
    ]


def test_losses_are_smoothed_over_a_tenth_of_the_steps():
    values = [float(i % 2) for i in range(100)]
    smooth = curves.smoothed(values)
    assert smooth[0] == pytest.approx(3 / 6)  # those at the ends have neighbors on one side
    assert smooth[-2] == pytest.approx(4 / 7)
    assert all(smooth[i] == pytest.approx(sum(values[i - 5 : i + 6]) / 11) for i in range(5, 95))
    assert curves.smoothed([3.0]) == [3]
    assert curves.smoothed([]) == []


def test_without_matplotlib_there_is_a_warning_and_no_plot(output, monkeypatch):
    assert curves.missing_plot_library() is None
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "stella-jax[plot]" in (curves.missing_plot_library() or "")
    (output / "curves.png").write_bytes(b"of the model that was trained on")
    with MetricsLog(output, 3) as metrics:
        assert not curves.draw(metrics, output / "curves.png")
    assert not (output / "curves.png").exists()


def test_curves_are_drawn(output):
    with MetricsLog(output, 3) as metrics:
        assert curves.draw(metrics, output / "curves.png")
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
