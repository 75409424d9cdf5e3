"""Whole jobs with the included checkpoint: their output, also when they are killed at any step."""

import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import content, embed_command, environment, kill_at_call

from stella_jax import Stella, StellaError
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.processes import Processes
from stella_jax.job.run import heartbeat, run_job
from stella_jax.runner import Runner
from stella_jax.storage.remote_file import RemoteFile
from stella_jax.storage.store import open_store

# One to nine words, cut at eight tokens, so that one shape is compiled.
WORDS = ["fog", "law", "owl", "sea", "ink", "jam", "elm", "oak", "ash", "bee", "cow"]
TEXTS = [f"{'tea ' * (i % 9)}{word}" for i, word in enumerate(WORDS)]
OPTIONS = JobOptions(part_rows=3)
ORIGIN = {"model": "tiny", "revision": None}


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """Eleven valid rows over two files, and between them a blank line, a broken one and a repeated id."""
    first = [json.dumps({"id": f"r{i}", "text": text}) for i, text in enumerate(TEXTS[:7])]
    second = [json.dumps({"id": f"r{i}", "text": text}) for i, text in enumerate(TEXTS[7:], 7)]
    (tmp_path / "a.jsonl").write_text("\n".join([*first[:2], "", "broken", *first[2:]]))
    (tmp_path / "b.jsonl").write_text("\n".join([second[0], first[3], *second[1:]]))
    return [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]


def embed(tiny: Stella, corpus: list[Path], out: Path, options: JobOptions = OPTIONS):
    return run_job(tiny, ORIGIN, corpus, out, options, RunOptions(max_rejected=0.9))


def table(out: Path) -> pa.Table:
    return pa.concat_tables(
        pq.read_table(path, page_checksum_verification=True) for path in sorted(out.glob("part-*.parquet"))
    )


def vectors(out: Path) -> np.ndarray:
    return np.stack(table(out)["embedding"].to_pylist()).astype(np.float32)


def manifest(out: Path) -> dict:
    return json.loads((out / "_job/manifest.json").read_text())


# The output


def test_a_finished_job_reads_no_input(tiny, memory, monkeypatch, tmp_path):
    memory.pipe("/in/a.jsonl", b'{"text": "fog"}\n{"text": "law"}\n')
    read, sizes = RemoteFile._read, []
    monkeypatch.setattr(RemoteFile, "_read", lambda self, size: sizes.append(size) or read(self, size))
    for expected in (True, False):
        sizes.clear()
        run_job(tiny, ORIGIN, ["memory://in/*.jsonl"], tmp_path / "out", OPTIONS, RunOptions())
        assert bool(sizes) == expected


def test_parts_hold_the_bits_of_encode(tiny, corpus, tmp_path):
    summary = embed(tiny, corpus, tmp_path / "out")
    found = table(tmp_path / "out")
    assert found.schema.names == ["id", "embedding", "n_tokens", "truncated"]
    assert found.schema.types == [pa.string(), pa.list_(pa.float32(), 32), pa.int32(), pa.bool_()]
    assert found["id"].to_pylist() == [f"r{i}" for i in range(11)]
    np.testing.assert_array_equal(vectors(tmp_path / "out"), tiny.encode(TEXTS))
    tokens = tiny.tokenize(TEXTS)
    assert found["n_tokens"].to_pylist() == [len(text.ids) for text in tokens]
    assert found["truncated"].to_pylist() == [text.truncated for text in tokens]
    assert 0 < sum(found["truncated"].to_pylist()) < 11
    assert (summary.rows, summary.job_rows, summary.job_rejected) == (12, 11, 2)  # one repeat is removed at the end


def test_the_encoding_of_parts(tiny, corpus, tmp_path):
    embed(tiny, corpus, tmp_path / "out")
    path = tmp_path / "out" / "part-000000-0001.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert (column.path_in_schema, column.compression) == ("embedding.list.element", "ZSTD")
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert not column.has_dictionary_page
    damaged = bytearray(path.read_bytes())
    damaged[column.data_page_offset + 60] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_the_output_is_a_dataset(tiny, corpus, tmp_path):
    embed(tiny, corpus, tmp_path / "out")
    assert pq.read_table(tmp_path / "out").equals(table(tmp_path / "out"))


def test_rejected_rows_and_the_manifest(tiny, corpus, tmp_path):
    out = tmp_path / "out"
    embed(tiny, corpus, out)
    assert [json.loads(line) for line in (out / "_job/rejected.jsonl").read_text().splitlines()] == [
        {"input": "a.jsonl", "row": 4, "id": None, "reason": "not JSON: Expecting value at character 0"},
        {"input": "b.jsonl", "row": 2, "id": "r3", "reason": "duplicate id, first seen at a.jsonl:6"},
    ]
    fields = manifest(out)
    assert fields["totals"] == {"rows": 11, "rejected": 2, "tokens": sum(len(t.ids) for t in tiny.tokenize(TEXTS))}
    assert [part["rows"] for part in fields["parts"]] == [2, 3, 3, 2, 1]
    assert [entry["name"] for entry in fields["inputs"]] == ["a.jsonl", "b.jsonl"]
    assert (fields["model"], fields["dim"], fields["prompt"], fields["dtype"]) == ("tiny", 32, "", "float32")
    for part in fields["parts"]:
        assert (out / part["file"]).stat().st_size == part["size"]


def test_prompt_and_normalize(corpus, tmp_path):
    model = Stella.from_pretrained("tiny", dim=32)
    embed(model, corpus, tmp_path / "out", JobOptions(prompt="s2p_query", normalize=True))
    expected = model.encode(TEXTS, prompt_name="s2p_query", normalize_embeddings=True)
    np.testing.assert_array_equal(vectors(tmp_path / "out"), expected)


@pytest.mark.parametrize("part_rows", [1, 4, 100])
def test_vectors_do_not_depend_on_part_rows(tiny, corpus, tmp_path, part_rows):
    embed(tiny, corpus, tmp_path / "out", JobOptions(part_rows=part_rows))
    np.testing.assert_array_equal(vectors(tmp_path / "out"), tiny.encode(TEXTS))


def test_a_part_without_valid_rows(tiny, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\nx\ny\n{"text": "b"}\n')
    options = JobOptions(part_rows=1)
    embed(tiny, [tmp_path / "a.jsonl"], tmp_path / "out", options)
    assert [part["rows"] for part in manifest(tmp_path / "out")["parts"]] == [1, 0, 0, 1]
    assert table(tmp_path / "out")["id"].to_pylist() == ["a.jsonl:1", "a.jsonl:4"]


def test_nan_is_never_written(tiny, corpus, tmp_path, monkeypatch):
    real = Runner.stream

    def with_nan(self, *args, **options):
        for number, embeddings in real(self, *args, **options):
            embeddings[0][1:2, 5] = np.nan
            yield number, embeddings

    monkeypatch.setattr(Runner, "stream", with_nan)
    embed(tiny, corpus, tmp_path / "out")
    assert np.isfinite(vectors(tmp_path / "out")).all()
    rejected = [json.loads(line) for line in (tmp_path / "out" / "_job/rejected.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rejected if "not finite" in row["reason"]] == ["r1", "r3", "r6", "r8"]
    assert (rejected[0]["id"], rejected[1]["row"]) == ("r1", 4)
    assert table(tmp_path / "out")["id"].to_pylist() == ["r0", "r2", "r4", "r5", "r7", "r3", "r9", "r10"]


def test_ranges_of_equal_texts(tiny, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "tea"}\n' * 2)
    embed(tiny, [tmp_path / "a.jsonl"], tmp_path / "out", JobOptions(precision="int8"))
    assert table(tmp_path / "out").num_rows == 2


# Errors before it starts


def test_a_directory_with_other_files_is_not_changed(tiny, corpus, tmp_path, refused):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes").touch()
    with refused("notes"):
        embed(tiny, corpus, out)
    with refused("notes"), heartbeat(open_store(out), Processes(1, 2)):
        pass
    assert [path.name for path in out.iterdir()] == ["notes"]
    with refused("notes"):
        embed(tiny, corpus, out / "notes")


# Kills and full disks


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up."""


def interrupt(patch: pytest.MonkeyPatch, name: str, call: int, error: BaseException) -> None:
    """Makes call number `call` to an os function raise."""
    real, calls = getattr(os, name), iter(range(10**9))

    def counted(*args, **options):
        if next(calls) == call:
            raise error
        return real(*args, **options)

    patch.setattr(os, name, counted)


def stop_at_every(
    name: str, run: Callable[[Path], object], tmp_path: Path, error: BaseException, cleans_up: bool
) -> int:
    """Stops a job at its first call to an os function, at its second, ...; the same command then finishes it."""
    run(tmp_path / "undisturbed")
    expected = content(tmp_path / "undisturbed")
    for call in range(1000):
        out = tmp_path / f"stopped-{call}"
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, name, call, error)
            if not cleans_up:
                patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
            try:
                run(out)
            except (Killed, StellaError):
                pass
            else:
                return call
        if cleans_up:
            assert not list(out.rglob("*.tmp"))
        run(out)
        assert content(out) == expected
    raise AssertionError("it never finished")


def test_a_kill_at_any_rename_leaves_the_same_bytes(tiny, corpus, tmp_path):
    steps = stop_at_every("replace", lambda out: embed(tiny, corpus, out), tmp_path, Killed(), cleans_up=False)
    assert steps >= len(content(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_a_full_disk_at_any_step(tiny, corpus, tmp_path):
    full, options = OSError(errno.ENOSPC, "No space left on device"), JobOptions(part_rows=6)
    steps = stop_at_every("fsync", lambda out: embed(tiny, corpus, out, options), tmp_path, full, cleans_up=True)
    assert steps >= len(content(tmp_path / "undisturbed"))


def test_the_error_of_a_full_disk(tiny, corpus, tmp_path, monkeypatch, refused):
    interrupt(monkeypatch, "fsync", 10, OSError(errno.ENOSPC, "No space left on device"))
    with refused(f"{tmp_path}/out: ", mask="[12](?= finished parts)"):
        embed(tiny, corpus, tmp_path / "out")


def test_only_missing_parts_are_embedded_again(tiny, corpus, tmp_path):
    out = tmp_path / "out"
    embed(tiny, corpus, out)
    before = content(out)
    assert embed(tiny, corpus, out).rows == 0
    (out / "part-000000-0001.parquet").write_bytes(before["part-000000-0001.parquet"][:-1])
    (out / "_job" / "commits" / "part-000000-0004.last.json").unlink()
    (out / ".part-000000-0000.parquet.1a2b3c4d.tmp").touch()
    kept = [out / f"part-000000-000{k}.parquet" for k in (0, 2, 3)]
    times = [path.stat().st_mtime_ns for path in kept]
    summary = embed(tiny, corpus, out)
    assert (summary.rows, summary.job_rows) == (3 + 1, 11)
    assert content(out) == before
    assert times == [path.stat().st_mtime_ns for path in kept]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{}")])
@pytest.mark.parametrize("name", ["commits/part-000000-0002.json", "ids/part-000000-0001.parquet"])
def test_a_part_with_damaged_files_is_embedded_again(tiny, corpus, tmp_path, name, damage):
    embed(tiny, corpus, tmp_path / "out")
    before = content(tmp_path / "out")
    damage(tmp_path / "out" / "_job" / name)
    (tmp_path / "out" / "_job" / "manifest.json").unlink()
    assert embed(tiny, corpus, tmp_path / "out").rows == 3
    assert content(tmp_path / "out") == before


def test_a_killed_process(tiny, corpus, tmp_path):
    out = tmp_path / "out"
    command = embed_command(corpus, out, "--part-rows", "3", "--max-rejected", "90%")
    ended = subprocess.run(
        kill_at_call(command, "os:replace", 7),
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGKILL, "", "")
    assert len(list(out.glob("part-*.parquet"))) == 2
    assert list(out.glob(".part-*.tmp"))
    embed(tiny, corpus, out)
    embed(tiny, corpus, tmp_path / "undisturbed")
    assert content(out) == content(tmp_path / "undisturbed")


def test_a_group_is_at_most_a_part(tiny, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("owl\n" * 40)
    held = []
    real = Runner.stream

    def counted(self, groups, *args, **options):
        def each():
            for tokens in groups:
                held.append(len(tokens))
                yield tokens

        return real(self, each(), *args, **options)

    monkeypatch.setattr(Runner, "stream", counted)
    embed(tiny, [tmp_path / "a.txt"], tmp_path / "out", JobOptions(part_rows=16))
    assert held == [16, 16, 8]
