"""Starting and resuming a job: its directory, its settings, and inputs that are added, changed or damaged."""

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import content, write_corpus

from stella_jax import Stella
from stella_jax.job.job import JOB, load_job, recorded_job
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.run import run_job
from stella_jax.job.verify import verify_job
from stella_jax.readers.rows import RowFields
from stella_jax.storage.store import open_store

WORDS = ["one", "two", "three", "four", "five"]
OPTIONS = JobOptions(part_rows=2)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "a.jsonl", WORDS)


def embed(model: Stella, inputs: list[Path], out: Path, options: JobOptions = OPTIONS, **run):
    return run_job(model, {"model": "tiny", "revision": None}, inputs, out, options, RunOptions(**run))


def later(folder: Path, name: str, ids: list[str], texts: list[str]) -> Path:
    path = folder / name
    path.write_text("".join(f'{{"id": "{i}", "text": "{text}"}}\n' for i, text in zip(ids, texts, strict=True)))
    return path


# Keys


def test_keys_stay_the_same(tmp_path: Path) -> None:
    """Parts with other keys are embedded again: a new version must find the keys of an earlier one."""
    fingerprint = {"text_field": "text", "id_field": "id", "dims": [2], "prompt": "\u00e9"}
    entry = {"size": 50, "planned_size": 50, "version": "1", "generation": 0, "repaired": False}
    inputs = [entry | {"name": name, "path": str(tmp_path / name)} for name in ("a.jsonl", "b.jsonl")]
    ranges = {"2": {"minimum": [-1.5, 0.1], "maximum": [0.5, 1e-7]}}
    store = open_store(tmp_path)
    store.prepare("_job")
    store.write_json(JOB, {"fingerprint": fingerprint, "ranges": ranges, "inputs": inputs, "split_bytes": 30})
    job = recorded_job(store)
    keys = ["c10004245d8cfaa9", "3492d8984fa375d1", "0db2e590842f9a7f", "ee2a14a2b87166fe"]
    assert [job.key(split) for split in job.splits] == keys
    assert job.whole_key == "63949c1b4d5ea3b5"


# Different settings


def test_different_settings_are_listed(tiny: Stella, corpus: Path, tmp_path: Path, refused) -> None:
    out = tmp_path / "out"
    embed(tiny, [corpus], out)
    before = content(out)
    options = JobOptions(RowFields("text", "id"), "s2p_query", normalize=True, part_rows=5)
    with refused("max_seq_length", "prompt", "normalize", "id_field", "part_rows"):
        embed(Stella.from_pretrained("tiny", dim=32), [corpus], out, options)
    with refused("split_bytes"):
        embed(tiny, [corpus], out, JobOptions(part_rows=2, split_bytes=7))
    other = Stella.from_pretrained("tiny", dim=64)
    other.max_seq_length = 8
    with refused("dims[0] was 32, is now 64", "model.heads.32 was", mask="[0-9a-f]{12}"):
        embed(other, [corpus], out)
    assert content(out) == before


def test_a_job_without_parts_may_start_again_with_different_settings(
    tiny: Stella, corpus: Path, tmp_path: Path
) -> None:
    embed(tiny, [corpus], tmp_path / "out", JobOptions(split_bytes=10))
    for path in (tmp_path / "out" / "_job" / "commits").iterdir():
        path.unlink()
    (tmp_path / "out" / "part-000007-0000.parquet").touch()  # killed before its commit
    assert embed(tiny, [corpus], tmp_path / "out").job_rows == 5


@pytest.mark.parametrize(("rows", "share"), [("", 0.01), ("broken\n" * 2000, 0.01), ("broken\n" * 2000, 1.0)])
def test_a_job_without_rows_may_start_again_with_other_inputs(tiny, corpus, tmp_path, rows, share, refused) -> None:
    wrong, out = tmp_path / "wrong.jsonl", tmp_path / "out"
    wrong.write_text(rows)
    with refused("inputs: "):
        embed(tiny, [wrong], out, JobOptions(split_bytes=4000), max_rejected=share)
    assert list((out / "_job" / "commits").iterdir())
    assert embed(tiny, [corpus], out).job_rows == 5
    embed(tiny, [corpus], tmp_path / "once")
    assert content(out) == content(tmp_path / "once")
    assert verify_job(out).faults == ()


# Changed inputs


@pytest.mark.parametrize("change", ["grow", "shrink", "touch"])
def test_a_changed_input_is_refused_before_any_work(tiny, corpus, tmp_path, change: str, refused) -> None:
    other = write_corpus(tmp_path / "b.jsonl", ["x"])
    embed(tiny, [other, corpus], tmp_path / "out", JobOptions(RowFields(id="id")), max_rejected=0.5)
    before = content(tmp_path / "out")
    text = corpus.read_text()
    if change == "touch":
        os.utime(corpus, ns=(0, 0))
    else:
        corpus.write_text(text + text if change == "grow" else text[:-20])
    with refused("a.jsonl: "):
        embed(tiny, [other, corpus], tmp_path / "out", JobOptions(RowFields(id="id")))
    assert content(tmp_path / "out") == before


def test_an_input_must_not_be_left_out(tiny, corpus, tmp_path, refused) -> None:
    other = write_corpus(tmp_path / "b.jsonl", ["x"])
    embed(tiny, [corpus, other], tmp_path / "out", max_rejected=0.5)
    with refused("b.jsonl"):
        embed(tiny, [corpus], tmp_path / "out")


def test_inputs_may_move(tiny, corpus, tmp_path, refused) -> None:
    embed(tiny, [corpus], tmp_path / "out")
    before = content(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    moved = corpus.rename(tmp_path / "elsewhere" / "a.jsonl")
    assert embed(tiny, [moved], tmp_path / "out").rows == 0
    assert content(tmp_path / "out") == before
    assert load_job(open_store(tmp_path / "out"), [moved]).inputs[0].location.given == str(moved)
    with refused("a.jsonl"):
        load_job(open_store(tmp_path / "out"))


# Added inputs


@pytest.mark.parametrize("split_bytes", [None, 60])
def test_adding_inputs_gives_the_same_result_as_all_at_once(
    tiny: Stella, corpus: Path, tmp_path: Path, split_bytes: int | None
) -> None:
    options = JobOptions(part_rows=2, split_bytes=split_bytes)
    out, once = tmp_path / "out", tmp_path / "once"
    embed(tiny, [corpus], out, options)
    parts = {path.name: path.read_bytes() for path in out.glob("part-*")}
    added = later(tmp_path, "0.jsonl", ["s0", "r1", "s2"], ["six", "seven", "eight"])  # r1 is in a.jsonl, too
    summary = embed(tiny, [added, corpus], out, options, max_rejected=0.5)
    assert (summary.rows, summary.job_rows, summary.job_rejected) == (3, 7, 1)
    assert {name: (out / name).read_bytes() for name in parts} == parts
    embed(tiny, [corpus, added], once, options, max_rejected=0.5)
    assert pq.read_table(out).sort_by("id").equals(pq.read_table(once).sort_by("id"))
    assert (out / "_job" / "rejected.jsonl").read_text() == (once / "_job" / "rejected.jsonl").read_text()
    assert "first seen at a.jsonl" in (out / "_job" / "rejected.jsonl").read_text()
    assert verify_job(out).faults == ()
    assert embed(tiny, [corpus, added], out, options, max_rejected=0.5).rows == 0


def test_an_added_input_with_the_same_file_name(tiny: Stella, corpus: Path, tmp_path: Path) -> None:
    embed(tiny, [corpus], tmp_path / "out")
    (tmp_path / "more").mkdir()
    added = later(tmp_path / "more", "a.jsonl", ["s0"], ["six"])
    embed(tiny, [corpus, added], tmp_path / "out")
    job = load_job(open_store(tmp_path / "out"))
    assert [file.name for file in job.inputs] == ["a.jsonl", "more/a.jsonl"]


# The directory


def test_a_directory_with_other_files_is_refused(tiny: Stella, corpus: Path, tmp_path: Path, refused) -> None:
    out = tmp_path / "out"
    (out / "photos").mkdir(parents=True)
    with refused("photos"):
        embed(tiny, [corpus], out)
    (out / "photos").rename(tmp_path / "photos")
    (out / "part-00000.parquet").touch()
    with refused("part-00000.parquet"):
        embed(tiny, [corpus], out)
    assert [path.name for path in out.iterdir()] == ["part-00000.parquet"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"0")])
def test_a_damaged_job_file_is_written_again(tiny: Stella, corpus: Path, tmp_path: Path, damage, refused) -> None:
    out = tmp_path / "out"
    embed(tiny, [corpus], out)
    before = content(out)
    damage(out / JOB)
    with refused(JOB):
        load_job(open_store(out))
    with refused("job.json", "part-000000-0000"):
        embed(tiny, [corpus], out, JobOptions(part_rows=3))
    assert embed(tiny, [corpus], out).rows == 0
    assert content(out) == before


def test_the_output_is_not_an_input(tiny: Stella, corpus: Path, tmp_path: Path, refused) -> None:
    embed(tiny, [corpus], tmp_path / "out")
    with refused("part-000000-0000.parquet"):
        embed(tiny, [tmp_path], tmp_path / "out")


# Damaged inputs


def test_rows_before_the_damage_are_kept_and_a_repaired_file_resumes(tiny: Stella, tmp_path: Path, refused) -> None:
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress("".join(f"{i} tea {i**7 % 99991}\n" for i in range(400)).encode(), mtime=0)
    path.write_bytes(whole[: len(whole) // 2])
    out, options = tmp_path / "out", JobOptions(part_rows=50)
    for _ in range(2):
        with refused("a.txt.gz: ", mask=r"\d+"):
            embed(tiny, [path], out, options)
    kept = sum(pq.read_metadata(part).num_rows for part in out.glob("part-*"))
    assert kept > 100
    path.write_bytes(whole)
    summary = embed(tiny, [path], out, options)
    assert (summary.rows, summary.job_rows) == (400 - kept, 400)
    embed(tiny, [path], tmp_path / "once", options)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "once"))
    assert verify_job(out).faults == ()


def test_a_repaired_file_with_different_rows_is_refused(tiny: Stella, tmp_path: Path, refused) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\nthree\n" * 50)[:-9])
    with refused("a.txt.gz"):
        embed(tiny, [path], tmp_path / "out", JobOptions(part_rows=50))
    path.write_bytes(gzip.compress(b"one\ntwo\nfour\n" * 50))
    with refused("a.txt.gz"):
        embed(tiny, [path], tmp_path / "out", JobOptions(part_rows=50))


def write_parquet(path: Path, texts: list[str], name: str = "text") -> bytes:
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(pa.table({name: texts}), path, row_group_size=20, **options)
    return path.read_bytes()


@pytest.mark.parametrize("split_bytes", [None, 900], ids=["whole", "cut"])
@pytest.mark.parametrize("damage", ["half", "page", "column"])
def test_a_repaired_parquet_file_resumes(tiny: Stella, corpus, tmp_path: Path, damage, split_bytes, refused) -> None:
    path, options = tmp_path / "b.parquet", JobOptions(part_rows=5, split_bytes=split_bytes)
    texts = [f"tea {i}" for i in range(100)]
    whole = write_parquet(path, texts)
    if damage == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "page":
        path.write_bytes(whole.replace(b"tea 71", b"tee 71"))
    else:
        write_parquet(path, texts, "body")
    for _ in range(2):
        with refused("b.parquet: ", mask=r" after row \d+| \(.*\)"):
            embed(tiny, [corpus, path], tmp_path / "out", options)
    path.write_bytes(whole)
    assert embed(tiny, [corpus, path], tmp_path / "out", options).job_rows == 105
    embed(tiny, [corpus, path], tmp_path / "once", options)
    assert pq.read_table(tmp_path / "out").equals(pq.read_table(tmp_path / "once"))
    assert verify_job(tmp_path / "out", sample=105).faults == ()


def test_a_repaired_parquet_file_with_different_rows_is_refused(tiny: Stella, tmp_path: Path, refused) -> None:
    path, options = tmp_path / "b.parquet", JobOptions(part_rows=5, split_bytes=900)
    whole = write_parquet(path, [f"tea {i}" for i in range(100)])
    path.write_bytes(whole.replace(b"tea 71", b"tee 71"))
    with refused("b.parquet: ", mask=r" after row \d+| \(.*\)"):
        embed(tiny, [path], tmp_path / "out", options)
    write_parquet(path, ["tee 0", *(f"tea {i}" for i in range(1, 100))])
    before = content(tmp_path / "out")
    with refused("b.parquet: ", "part-000000-0000"):
        embed(tiny, [path], tmp_path / "out", options)
    assert content(tmp_path / "out") == before
