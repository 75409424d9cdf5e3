"""TensorBoard's events and Weights & Biases' runs, read back."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from train.log_writers import check_log, open_log
from train.recipe import recipe_of

RECIPE = {"model": "tiny", "loop": {"epochs": 3}}


def write(log: str, output: Path, start: int, end: int, offset: float = 0) -> None:
    """Logs the steps after `start` up to `end`, as a resumed run does, and closes."""
    [writer] = open_log([log], output, start, RECIPE)
    for step in range(start + 1, end + 1):
        writer.write(step, {"train/loss": step + offset})
    writer.write(end, {"eval/own/cosine_ndcg@10": 0.5})
    writer.close(failed=False)


def events(output: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(output / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_gets_every_number(tmp_path):
    write("tensorboard", tmp_path, 0, 3)
    assert events(tmp_path) == {"train/loss": [(1, 1), (2, 2), (3, 3)], "eval/own/cosine_ndcg@10": [(3, 0.5)]}


def test_events_are_flushed(tmp_path):
    [writer] = open_log(["tensorboard"], tmp_path, 0, RECIPE)
    writer.write(1, {"train/loss": 1})
    assert events(tmp_path) == {"train/loss": [(1, 1)]}
    writer.close(failed=True)


def test_a_resumed_run_drops_later_events(tmp_path):
    write("tensorboard", tmp_path, 0, 5)
    write("tensorboard", tmp_path, 3, 4, offset=10)
    assert events(tmp_path) == {
        "train/loss": [(1, 1), (2, 2), (3, 3), (4, 14)],
        "eval/own/cosine_ndcg@10": [(4, 0.5)],
    }
    write("tensorboard", tmp_path, 0, 1)
    assert events(tmp_path)["train/loss"] == [(1, 1)]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def chunks(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    data, at, record = path.read_bytes(), 7, b""
    while at < len(data):
        if 2**15 - at % 2**15 < 7:  # no room for a header in the rest of a block
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def records(path: Path) -> tuple[str, dict[int, dict[str, str]], str]:
    """Run id, metrics by step, and configuration from a file that wandb wrote."""
    from wandb.proto import wandb_internal_pb2

    run, steps, config = "", {}, ""
    for chunk in chunks(path):
        record = wandb_internal_pb2.Record.FromString(chunk)  # pyright: ignore[reportAttributeAccessIssue]
        run = record.run.run_id or run
        config += str(record.run.config)
        if record.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            step = int(items.get("_step", record.history.step.num))
            steps[step] = {name: value for name, value in items.items() if not name.startswith("_")}
    return run, steps, config


@pytest.mark.slow
def test_a_resumed_run_keeps_its_wandb_id(tmp_path, offline):
    write("wandb", tmp_path, 0, 2)
    write("wandb", tmp_path, 1, 3)
    paths = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    first, second = map(records, paths)
    assert first[0] == second[0] == (tmp_path / "wandb/run_id").read_text().strip()
    assert first[1] == {1: {"train/loss": "1"}, 2: {"train/loss": "2", "eval/own/cosine_ndcg@10": "0.5"}}
    assert second[1] == {2: {"train/loss": "2"}, 3: {"train/loss": "3", "eval/own/cosine_ndcg@10": "0.5"}}
    assert "tiny" in first[2]


def test_a_missing_package(monkeypatch, refused):
    check_log([])
    check_log(["tensorboard", "wandb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused("wandb"):
        check_log(["wandb"])


def test_an_unknown_package(refused):
    tree = {"model": "tiny", "output": "x", "data": {"train": "x"}, "loop": {"log": ["mlflow"]}}
    with refused("'mlflow'"):
        recipe_of(tree)


def test_only_requested_packages_are_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert open_log([], tmp_path, 0, RECIPE) == []
    assert list(tmp_path.iterdir()) == []
