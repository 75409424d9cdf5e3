"""Embedding parts: several heads, results that are not finite, damaged inputs, and stopping."""

import gzip
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from jobs import content, leftovers, progress_lines, write_corpus

from stella_jax import Stella
from stella_jax.cli.main import main
from stella_jax.graceful_shutdown import GracefulShutdown, Stopped
from stella_jax.job import chunks, worker
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.run import run_job
from stella_jax.job.verify import verify_job
from stella_jax.runner import Runner
from stella_jax.storage.store import open_store

TEXTS = [f"{'tea ' * (i % 5)}{i}" for i in range(20)]
OPTIONS = JobOptions(part_rows=2)
ORIGIN = {"model": "tiny", "revision": None}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "a.jsonl", TEXTS)


def embed(model: Stella, corpus: Path | str, out: Path | str, options: JobOptions = OPTIONS, **run):
    return run_job(model, ORIGIN, [corpus], out, options, RunOptions(**run))


def parts(out: Path) -> list[str]:
    """Names of committed parts."""
    return sorted(path.name.partition(".")[0] for path in (out / "_job" / "commits").glob("*.json"))


# Results that are not finite


def add_nan(patch: pytest.MonkeyPatch, is_invalid: Callable[[int], bool]) -> None:
    """Sets NaN in the first embedding of some groups, which are counted over all jobs."""
    real, groups = Runner.stream, iter(range(10**9))

    def stream(self, *args, **options):
        for number, embeddings in real(self, *args, **options):
            if is_invalid(next(groups)):
                embeddings[0][0, 0] = np.nan
            yield number, embeddings

    patch.setattr(Runner, "stream", stream)


def test_too_many_rows_that_are_not_finite(tiny, corpus, tmp_path, monkeypatch, refused):
    out = tmp_path / "out"
    add_nan(monkeypatch, lambda group: group in (1, 3, 4))
    with refused("--max-rejected"):
        embed(tiny, corpus, out, max_rejected=0.1)
    assert len(parts(out)) == 10
    assert not (out / "_job" / "manifest.json").exists()
    assert leftovers(out) == []
    assert embed(tiny, corpus, out, max_rejected=0.15).rows == 0
    assert verify_job(out).faults == ()
    assert len((out / "_job" / "rejected.jsonl").read_text().splitlines()) == 3
    with refused("--max-rejected"):
        embed(tiny, corpus, out, max_rejected=0.14)


def test_a_job_with_far_too_many_rejected_rows_ends_early(tiny, tmp_path, monkeypatch, refused):
    corpus = write_corpus(tmp_path / "long.jsonl", TEXTS * 10)
    add_nan(monkeypatch, lambda group: True)
    monkeypatch.setitem(worker.OPEN_ROWS, "cpu", 4)
    with refused("--max-rejected", varies=True):
        embed(tiny, corpus, tmp_path / "out", max_rejected=0.1)
    assert 10 < len(parts(tmp_path / "out")) < 100


def test_the_allowed_share_is_exact(tiny, tmp_path, monkeypatch):
    corpus = tmp_path / "a.txt"
    corpus.write_text("tea\n" * 10)
    add_nan(monkeypatch, lambda group: group == 0)
    assert embed(tiny, corpus, tmp_path / "out", max_rejected=0.1).job_rejected == 1


@pytest.mark.parametrize(("part_rows", "chunk_rows"), [(20, 1), (7, 2), (7, 3), (4, 4), (50, 16)])
def test_chunks_do_not_change_a_part(tiny, tmp_path, monkeypatch, part_rows, chunk_rows):
    corpus = write_corpus(tmp_path / "long.jsonl", [*TEXTS[:5], "", *TEXTS[5:]] * 2)
    options = JobOptions(part_rows=part_rows)
    embed(tiny, corpus, tmp_path / "whole", options, max_rejected=0.2)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", chunk_rows)
    embed(tiny, corpus, tmp_path / "chunks", options, max_rejected=0.2)
    assert content(tmp_path / "chunks") == content(tmp_path / "whole")
    assert len(parts(tmp_path / "chunks")) == -(-42 // part_rows)


@pytest.mark.parametrize("rows", [0, 3, 4, 7, 8, 9])
def test_rows_before_damage_are_kept_in_any_chunk(tiny, tmp_path, monkeypatch, rows, refused):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    lines = [json.dumps({"id": f"r{i}", "text": "tea"}).encode() + b"\n" for i in range(12)]
    corpus, out = tmp_path / "a.jsonl.gz", tmp_path / "out"
    corpus.write_bytes(gzip.compress(b"".join(lines[:rows])) + b"no gzip" * 9)
    for _ in range(2):
        with refused("a.jsonl.gz: ", mask=r"\(.*\)"):
            embed(tiny, corpus, out, JobOptions(part_rows=8))
    assert sum(pq.read_table(path).num_rows for path in out.glob("part-*.parquet")) == rows
    corpus.write_bytes(gzip.compress(b"".join(lines)))
    assert embed(tiny, corpus, out, JobOptions(part_rows=8)).job_rows == 12
    assert verify_job(out).faults == ()


# Several heads


@pytest.fixture(scope="module")
def both() -> Stella:
    model = Stella.from_pretrained("tiny", dim=(32, 64))
    model.max_seq_length = 8
    return model


@pytest.mark.parametrize("normalize", [False, True])
def test_several_heads_give_the_same_as_separate_jobs(both, corpus, tmp_path, normalize):
    options = JobOptions(normalize=normalize, part_rows=6)
    embed(both, corpus, tmp_path / "both", options)
    for dim in (32, 64):
        alone = Stella.from_pretrained("tiny", dim=dim)
        alone.max_seq_length = 8
        embed(alone, corpus, tmp_path / f"{dim}", options)
        for path in sorted((tmp_path / f"{dim}").glob("part-*.parquet")):
            one, two = pq.read_table(path), pq.read_table(tmp_path / "both" / path.name)
            assert two.schema.names == ["id", "embedding_32", "embedding_64", "n_tokens", "truncated"]
            assert one["embedding"].equals(two[f"embedding_{dim}"])
            assert one.drop(["embedding"]).equals(two.drop(["embedding_32", "embedding_64"]))
    assert verify_job(tmp_path / "both").faults == ()


def test_a_row_that_is_not_finite_in_one_head_is_rejected(both, corpus, tmp_path, monkeypatch):
    add_nan(monkeypatch, lambda group: group == 3)
    embed(both, corpus, tmp_path / "out", max_rejected=0.1)
    assert pq.read_table(tmp_path / "out" / "part-000000-0003.parquet")["id"].to_pylist() == ["r7"]


# URLs


def test_objects_give_the_same_bytes_as_files(tiny, corpus, tmp_path):
    given, written = f"memory://{tmp_path.name}/in/a.jsonl", f"memory://{tmp_path.name}/out"
    with open_store(f"memory://{tmp_path.name}/in").replacing("a.jsonl") as file:
        file.write(corpus.read_bytes())
    embed(tiny, given, tmp_path / "out")
    summary = embed(tiny, given, written)
    assert (summary.rows, summary.job_rows) == (20, 20)
    assert content(written) == content(tmp_path / "out")
    assert open_store(written).size("_job/progress.jsonl")
    open_store(written).remove("part-000000-0004.parquet")
    assert embed(tiny, given, written).rows == 2
    assert content(written) == content(tmp_path / "out")
    assert verify_job(written).faults == ()


# Stopping


def during(patch: pytest.MonkeyPatch, name: str, call: int, action: Callable[[], object]) -> None:
    """Does something before call number `call` to an os function."""
    real, calls = getattr(os, name), iter(range(10**9))

    def counted(*args, **options):
        if next(calls) == call:
            action()
        return real(*args, **options)

    patch.setattr(os, name, counted)


def test_a_stop_finishes_open_parts_only(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(worker.OPEN_ROWS, "cpu", 4)
    corpus = write_corpus(tmp_path / "long.jsonl", TEXTS * 6)
    embed(tiny, corpus, tmp_path / "undisturbed")
    out, stop = tmp_path / "out", GracefulShutdown(1000)
    with monkeypatch.context() as patch:
        during(patch, "replace", 5, stop.request)  # job.json, then three for each part
        with pytest.raises(Stopped):
            embed(tiny, corpus, out, stop=stop)
    done = len(parts(out))
    assert 2 <= done < 40
    assert leftovers(out) == []
    assert progress_lines(out)[-1]["phase"] == "stopped"
    summary = embed(tiny, corpus, out)
    assert summary.job_rows == 120
    assert summary.rows == 120 - 2 * done
    assert content(out) == content(tmp_path / "undisturbed")


def test_after_the_grace_period_open_parts_are_dropped(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(worker.OPEN_ROWS, "cpu", 4)
    corpus = write_corpus(tmp_path / "long.jsonl", TEXTS * 6)
    out, stop = tmp_path / "out", GracefulShutdown(-1)
    during(monkeypatch, "replace", 5, stop.request)
    with pytest.raises(Stopped):
        embed(tiny, corpus, out, stop=stop)
    assert leftovers(out) == []
    assert 1 <= len(parts(out)) < 40
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("prefetch", "writer"))]


def test_a_stopped_command(corpus, tmp_path, monkeypatch, capsys, check_message):
    during(monkeypatch, "replace", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    arguments = ["embed", str(corpus), "--out", str(tmp_path / "out"), "--dim", "32", "--max-length", "8"]
    assert main([*arguments, "--part-rows", "2", "--progress"]) == 143
    shown, errors = capsys.readouterr()
    assert shown == ""
    check_message(errors.splitlines()[-1], "stella-jax: ", "SIGTERM")
    assert leftovers(tmp_path / "out") == []
