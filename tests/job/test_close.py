"""The end of a job: rows with repeated ids are removed, and a kill at any call leaves the same bytes."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from jobs import content

from stella_jax import Stella
from stella_jax.job.commits import COMMITS_FOLDER, IDS_FOLDER
from stella_jax.job.manifest import MANIFEST
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.run import run_job
from stella_jax.job.verify import verify_job

OPTIONS = JobOptions(part_rows=3, split_bytes=200)


def embed(model: Stella, inputs: list[Path], out: Path, max_rejected: float = 0.9, options: JobOptions = OPTIONS):
    origin = {"model": "tiny", "revision": None}
    return run_job(model, origin, inputs, out, options, RunOptions(max_rejected=max_rejected))


def write(path: Path, ids: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"id": row_id, "text": f"tea {i % 7}"}) + "\n" for i, row_id in enumerate(ids)))
    return path


def rejected(out: Path) -> list[tuple[str, str, str]]:
    lines = [json.loads(line) for line in (out / "_job" / "rejected.jsonl").read_text().splitlines()]
    return [(line["input"], line["id"], line["reason"]) for line in lines]


def ids(out: Path) -> list[str]:
    return [row_id for path in sorted(out.glob("part-*")) for row_id in pq.read_table(path)["id"].to_pylist()]


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """Ids repeated within a part, across parts, splits and inputs; one whole part of repeats, one id three times."""
    first = [f"a{i}" for i in range(20)]
    second = ["b0", "b0", "b1", "a3", "a4", "a5", "b2", "a19", "b3", "b2", "b1", "b4"]
    return [write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)]


def test_later_rows_with_the_same_id_are_removed_and_listed(tiny: Stella, corpus: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = embed(tiny, corpus, out)
    assert (summary.job_rows, summary.job_rejected) == (25, 7)
    assert ids(out) == [*(f"a{i}" for i in range(20)), "b0", "b1", "b2", "b3", "b4"]
    found = rejected(out)
    assert [row_id for _, row_id, _ in found] == ["b0", "a3", "a4", "a5", "a19", "b2", "b1"]
    assert found[1] == ("b.jsonl", "a3", "duplicate id, first seen at a.jsonl@90")
    assert {name for name, _, _ in found} == {"b.jsonl"}
    assert verify_job(out).faults == ()
    assert embed(tiny, corpus, out).rows == 0


def test_the_remaining_rows_are_right(tiny: Stella, corpus: list[Path], tmp_path: Path) -> None:
    embed(tiny, corpus, tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    texts = {json.loads(line)["id"]: json.loads(line)["text"] for line in reversed(corpus[1].read_text().splitlines())}
    texts |= {json.loads(line)["id"]: json.loads(line)["text"] for line in corpus[0].read_text().splitlines()}
    expected = tiny.encode([texts[row_id] for row_id in table["id"].to_pylist()])
    assert table["embedding"].to_pylist() == expected.tolist()


def test_ids_that_are_positions_are_not_checked(tiny: Stella, tmp_path: Path) -> None:
    """Their files are not read: a damaged one, whose part would be embedded again, goes unnoticed."""
    (tmp_path / "positions.txt").write_text("tea\n" * 10)
    inputs = {
        "positions": tmp_path / "positions.txt",
        "own": write(tmp_path / "own.jsonl", [f"a{i}" for i in range(10)]),
    }
    redone = {}
    for name, path in inputs.items():
        out = tmp_path / name
        assert embed(tiny, [path], out).job_rows == 10
        (out / MANIFEST).unlink()
        (out / IDS_FOLDER / "part-000000-0001.parquet").write_bytes(b"damaged")
        redone[name] = embed(tiny, [path], out).rows
    assert redone["positions"] == 0 < redone["own"]


def test_repeats_are_removed_from_a_redone_part_again(tiny: Stella, corpus: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(tiny, corpus, out)
    before = content(out)
    for path in sorted(out.glob("part-*"))[-3:]:
        path.write_bytes(b"damaged")
    assert len(verify_job(out).invalidated) == 3
    embed(tiny, corpus, out)
    assert content(out) == before


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up."""


def kill_at(call: int, out: Path, parts: int, patch: pytest.MonkeyPatch) -> None:
    """Ends the job before call number `call`, after all parts are committed, to a function that changes the output."""
    calls, killed = iter(range(10**9)), threading.Event()
    for name in ("fsync", "replace", "unlink"):
        real = getattr(os, name)

        def counted(*args, real=real, **options):
            is_closing = threading.current_thread() is threading.main_thread() and len(commits(out)) == parts
            if is_closing and not killed.is_set() and next(calls) == call:
                killed.set()
                raise Killed
            return None if killed.is_set() else real(*args, **options)

        patch.setattr(os, name, counted)


def commits(out: Path) -> list[Path]:
    return list((out / COMMITS_FOLDER).glob("part-*.json"))


def killed_while_closing(model: Stella, corpus: list[Path], folder: Path, parts: int) -> Iterator[Path]:
    """Outputs of jobs of so many parts that were killed at the first call of their close, at the second, ..."""
    for call in range(1000):
        out = folder / f"killed-{call}"
        with pytest.MonkeyPatch.context() as patch:
            kill_at(call, out, parts, patch)
            try:
                embed(model, corpus, out)
            except Killed:
                pass
            else:
                return
        yield out
    raise AssertionError("it never finished")


def test_a_kill_at_any_call_leaves_the_same_bytes(tiny: Stella, tmp_path: Path) -> None:
    first, second = [f"a{i}" for i in range(5)], ["b0", "a3", "a4", "a0", "b1", "a2"]
    corpus = [write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)]
    embed(tiny, corpus, tmp_path / "undisturbed")
    expected = content(tmp_path / "undisturbed")
    killed = 0
    for out in killed_while_closing(tiny, corpus, tmp_path, len(commits(tmp_path / "undisturbed"))):
        embed(tiny, corpus, out)
        assert content(out) == expected
        killed += 1
    assert killed > 12


# Counts


@pytest.mark.parametrize("rows", ["", "\n\n"])
def test_no_rows(tiny: Stella, tmp_path: Path, rows: str, refused) -> None:
    (tmp_path / "a.jsonl").write_text(rows)
    with refused("inputs"):
        embed(tiny, [tmp_path / "a.jsonl"], tmp_path / "out")


def test_no_valid_row(tiny: Stella, tmp_path: Path, refused) -> None:
    (tmp_path / "a.jsonl").write_text("x\ny\n")
    with refused("a.jsonl:1"):
        embed(tiny, [tmp_path / "a.jsonl"], tmp_path / "out", 1.0)


def test_an_empty_file_and_one_of_invalid_rows_among_others(tiny: Stella, tmp_path: Path, refused) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text("x\ny\n")
    corpus = [tmp_path / "a.jsonl", tmp_path / "b.jsonl", write(tmp_path / "c.jsonl", ["c0", "c1"])]
    summary = embed(tiny, corpus, tmp_path / "out", 0.5)
    assert (summary.job_rows, summary.job_rejected) == (2, 2)
    with refused("--max-rejected"):
        embed(tiny, corpus, tmp_path / "out", 0.49)
