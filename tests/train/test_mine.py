"""The command `python -m train.mine`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from stella_jax import Stella
from stella_jax.cli import main as cli
from stella_jax.job.options import ModelOptions
from train import hard_negatives
from train.data_reader import read_dataset
from train.hard_negatives import MineCommand, mine
from train.mine import main
from train.negative_selection import MiningOptions

PAIRS = [(f"what is number {i}?", f"the number {i}, after {i - 1}") for i in range(30)]
SHORT = ("--dim", "32", "--max-length", "48")  # a query's prompt has 24


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", [{"anchor": anchor, "positive": positive} for anchor, positive in PAIRS])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_mined_rows_train(pairs: Path, tmp_path: Path, capsys) -> None:
    """Three negatives for each pair, readable by training; the working directory is removed."""
    out = tmp_path / "mined.jsonl"
    assert main([str(pairs), "--out", str(out), *SHORT]) == 0
    assert f"{out}: 90 negatives for 30 anchors of 30 pairs" in capsys.readouterr().out
    found = read_dataset(out)
    assert len(found) == 90 and list(found.texts) == ["anchor", "positive", "negative"]
    positives = {positive for _, positive in PAIRS}
    assert all(row["negative"] in positives - {row["positive"]} for row in rows_of(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mined.jsonl", "pairs.jsonl"]


def test_negatives_are_the_nearest_by_the_models_own_similarity(pairs: Path, tmp_path: Path) -> None:
    """With the query prompt for anchors, scores in a list, and a corpus of more candidates."""
    others = [f"another number, {i}" for i in range(20)]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(others))
    out = tmp_path / "mined.parquet"
    options = ["--corpus", str(corpus), "--output-format", "n-tuple", "--output-scores", "--num-negatives", "2"]
    assert main([str(pairs), "--out", str(out), *SHORT, *options]) == 0
    candidates = [*others, *(positive for _, positive in PAIRS)]
    model = Stella.from_pretrained("tiny", dim=32)
    scores = model.similarity(model.encode_query([anchor for anchor, _ in PAIRS]), model.encode_document(candidates))
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == len(PAIRS)
    for i, row in enumerate(rows):
        scores_of = dict(zip(candidates, scores[i], strict=True))
        positive = scores_of.pop(row["positive"])
        best = sorted(scores_of.values(), reverse=True)[:2]
        chosen = [scores_of[row["negative"]], scores_of[row["negative_2"]]]
        np.testing.assert_allclose(chosen, best, atol=1e-5)
        np.testing.assert_allclose(row["score"], [positive, *best], atol=1e-5)


def test_texts_are_embedded_once(pairs: Path, tmp_path: Path, monkeypatch) -> None:
    """Texts that are anchor and candidate are embedded once if the prompts are equal; a work directory is reused."""
    write(pairs, [{"anchor": positive, "positive": anchor} for anchor, positive in PAIRS] + rows_of(pairs))
    embedded: list[int] = []
    run_job = hard_negatives.run_job

    def spy(*arguments: Any) -> Any:
        summary = run_job(*arguments)
        embedded.append(summary.rows)
        return summary

    monkeypatch.setattr(hard_negatives, "run_job", spy)
    options = ["--anchor-prompt", "none", "--range-max", "9", "--work", str(tmp_path / "kept"), *SHORT]
    assert main([str(pairs), "--out", str(tmp_path / "a.jsonl"), *options]) == 0
    assert embedded == [60]
    monkeypatch.setattr(hard_negatives, "nearest", None)
    assert main([str(pairs), "--out", str(tmp_path / "b.jsonl"), "--max-score", "0.9", *options]) == 0
    assert embedded == [60, 0]
    assert len(rows_of(tmp_path / "a.jsonl")) == 180


@pytest.mark.parametrize("place", ["run_job", "nearest", "write_rows"])
def test_an_interrupted_mining_run_resumes(pairs: Path, tmp_path: Path, monkeypatch, place: str) -> None:
    """To the same bytes; nothing half-written stands under the name of the output."""
    options = MiningOptions(range_max=10, sampling_strategy="random")
    model = ModelOptions(dim=32, max_length=48)
    mine(MineCommand(str(pairs), str(tmp_path / "whole.jsonl"), model, options))
    command = MineCommand(str(pairs), str(tmp_path / "cut.jsonl"), model, options)
    calls, function = [], getattr(hard_negatives, place)

    def failing(*arguments: Any) -> Any:
        calls.append(place)
        if len(calls) == (2 if place == "run_job" else 1):
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(hard_negatives, place, failing)
    with pytest.raises(KeyboardInterrupt):
        mine(command)
    assert not (tmp_path / "cut.jsonl").exists() and (tmp_path / "cut.jsonl.work").exists()
    before = files(tmp_path / "cut.jsonl.work")
    monkeypatch.undo()
    mine(command)
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert before and not (tmp_path / "cut.jsonl.work").exists()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv", "a.csv.zst", "a.parquet"])
def test_every_file_type_has_the_same_rows(pairs: Path, tmp_path: Path, name: str) -> None:
    work = ["--work", str(tmp_path / "kept"), *SHORT]
    for out in (name, "b.jsonl"):
        assert main([str(pairs), "--out", str(tmp_path / out), *work]) == 0
    assert read_dataset(tmp_path / name).sha256 == read_dataset(tmp_path / "b.jsonl").sha256


@pytest.fixture
def fails(capsys, check_message) -> Callable[..., None]:
    """Runs the command, which must end with an error that has these names."""

    def run(arguments: list[Any], *names: str) -> None:
        assert main([str(argument) for argument in arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        check_message(line, *names)

    return run


def test_invalid_input(pairs: Path, tmp_path: Path, fails) -> None:
    out = ["--out", tmp_path / "mined.jsonl"]
    other = write(tmp_path / "other.jsonl", [{"query": "a", "text": "b"}])
    same = write(tmp_path / "same.jsonl", [{"anchor": "a", "positive": "a"}, {"anchor": "", "positive": "a"}])
    (tmp_path / "empty.jsonl").write_text("")
    before = files(tmp_path)
    fails([other, *out], "other.jsonl: ", "'anchor'")
    fails([same, *out], "same.jsonl: row 1: anchor and positive", "row 2: anchor")
    fails([tmp_path / "empty.jsonl", *out], "empty.jsonl: ")
    fails([tmp_path / "missing.jsonl", *out], "missing.jsonl: ")
    fails([pairs, *out, "--range-max", "31"], "pairs.jsonl: 30 ", "range_max = 31")
    fails([pairs, *out, "--relative-margin", "2"], "relative_margin: 2.0")
    fails([pairs, *out, "--model", "nowhere"], "nowhere")
    fails([pairs, *out, "--max-length", "16"], "prompt 'Instruct", "24 tokens", "length of 16")
    fails([pairs, "--out", pairs], "pairs.jsonl: ")
    fails([pairs, "--out", tmp_path / "mined.txt"], "mined.txt: ")
    csv = ["--output-format", "labeled-list", "--out", tmp_path / "mined.csv"]
    fails([pairs, *csv], "mined.csv: ", "labeled-list")
    assert files(tmp_path) == before


def test_no_negatives_left(pairs: Path, tmp_path: Path, fails) -> None:
    """The error names the number of anchors and the options to change; embeddings are kept, no file is written."""
    out = tmp_path / "mined.jsonl"
    command = [pairs, "--out", out, *SHORT, "--max-score", "-0.99", "--no-progress"]
    fails(command, "pairs.jsonl: ", "30 of 30 anchors", "range_max", "max_score")
    assert not out.exists()


def test_a_work_directory_of_other_texts(pairs: Path, tmp_path: Path, capsys, fails) -> None:
    work = ["--work", tmp_path / "kept", *SHORT]
    assert main([*map(str, [pairs, "--out", tmp_path / "a.jsonl", *work])]) == 0
    capsys.readouterr()
    write(pairs, rows_of(pairs)[:20])
    fails([pairs, "--out", tmp_path / "b.jsonl", *work], f"{tmp_path}/kept/", "--work")


@pytest.mark.parametrize("name", ["notes.txt", "texts/notes.txt", "nearest-0123456789abcdef/a/0-0.npz", ""])
def test_a_default_work_directory_with_files_of_the_user(pairs: Path, tmp_path: Path, name: str, refused) -> None:
    """They would be removed with it, so nothing starts."""
    path = tmp_path / "mined.jsonl.work" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    before = files(tmp_path)
    with refused("mined.jsonl.work", name):
        mine(MineCommand(str(pairs), str(tmp_path / "mined.jsonl"), ModelOptions(dim=32, max_length=48)))
    assert files(tmp_path) == before


def test_a_work_directory_as_a_killed_run_leaves_it(pairs: Path, tmp_path: Path) -> None:
    """With a half-written file; mining resumes and removes it."""
    work = tmp_path / "mined.jsonl.work"
    assert main([str(pairs), "--out", str(tmp_path / "other.jsonl"), "--work", str(work), *SHORT]) == 0
    (work / ".corpus.parquet.0123abcd.tmp").write_text("half")
    assert main([str(pairs), "--out", str(tmp_path / "mined.jsonl"), *SHORT]) == 0
    assert not work.exists() and rows_of(tmp_path / "mined.jsonl") == rows_of(tmp_path / "other.jsonl")


def test_columns_by_name(pairs: Path, tmp_path: Path) -> None:
    renamed = [{"question": row["anchor"], "answer": row["positive"]} for row in rows_of(pairs)]
    names = ["--anchor-column", "question", "--positive-column", "answer"]
    source = write(tmp_path / "renamed.jsonl", renamed)
    assert main([str(source), "--out", str(tmp_path / "a.jsonl"), *names, *SHORT]) == 0
    assert main([str(pairs), "--out", str(tmp_path / "b.jsonl"), *SHORT]) == 0
    assert rows_of(tmp_path / "a.jsonl") == rows_of(tmp_path / "b.jsonl")


def test_stella_jax_mine_is_the_same_command(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["mine", "--help"])
    assert "usage: stella-jax mine" in capsys.readouterr().out
    run = subprocess.run([sys.executable, "-m", "train.mine", "--help"], capture_output=True, text=True, check=True)
    assert "usage: python -m train.mine" in run.stdout
