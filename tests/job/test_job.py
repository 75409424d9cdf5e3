"""A job that one process plans and others join, and what a folder must look like for it."""

import threading
from pathlib import Path

import pytest
from jobs import content, write_corpus

from stella_jax import StellaError
from stella_jax.job import job as job_module
from stella_jax.job import lookout
from stella_jax.job.job import JOB, Job, join_job, load_job, open_job
from stella_jax.job.progress import Progress
from stella_jax.job.receipts import Receipt, write_receipt
from stella_jax.job.rows import Fields
from stella_jax.job.settings import Settings
from stella_jax.job.store import open_store

SETTINGS = Settings(Fields(), "", False, 2)
FINGERPRINT = {"text_field": "text", "id_field": None, "prompt": "", "normalize": False, "part_rows": 2}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "a.jsonl", ["one", "two", "three", "four", "five"])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(lookout, "PATIENCE", 0.3)


def plan(out: Path, *inputs: Path, **changed: object) -> Job:
    store = open_store(out)
    return open_job(store, inputs, SETTINGS, FINGERPRINT | changed, 0.5, Progress(store))


def join(out: Path, *inputs: Path, **changed: object) -> Job:
    store = open_store(out)
    store.prepare()
    return join_job(store, inputs, SETTINGS, FINGERPRINT | changed, Progress(store, 1))


def commit(job: Job) -> None:
    """Puts an empty part 1 there."""
    (job.store.scratch / "part-00001.parquet").touch()
    write_receipt(job.store, Receipt(job.key, "part-00001", 2, 6, 0, "", ()))


# Joining


def test_who_joins_finds_the_job_that_was_planned(corpus, tmp_path):
    planned = plan(tmp_path / "out", corpus)
    joined = join(tmp_path / "out", corpus)
    assert (joined.fields, joined.parts, joined.key) == (planned.fields, planned.parts, planned.key)
    assert joined.plan.rows == 5


def test_who_joins_early_waits(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(lookout, "PATIENCE", 60)
    timer = threading.Timer(0.1, plan, [tmp_path / "out", corpus])
    timer.start()
    try:
        assert join(tmp_path / "out", corpus).plan.rows == 5
    finally:
        timer.join()


def test_who_waits_for_nobody_says_so(corpus, tmp_path):
    with pytest.raises(StellaError, match=r"process 0 has not planned .*/out, and was silent for .* s; start it again"):
        join(tmp_path / "out", corpus)
    assert content(tmp_path / "out") == {}


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"0")])
def test_who_joins_waits_for_a_damaged_plan_to_be_made_again(corpus, tmp_path, monkeypatch, damage):
    out = tmp_path / "out"
    plan(out, corpus)
    sound = content(out)
    damage(out / "plan" / "parts.bin")
    with pytest.raises(StellaError, match="process 0 has not planned"):
        join(out, corpus)
    monkeypatch.setattr(lookout, "PATIENCE", 60)
    timer = threading.Timer(0.1, plan, [out, corpus])
    timer.start()
    try:
        assert join(out, corpus).plan.rows == 5
    finally:
        timer.join()
    assert content(out) == sound


def test_who_brings_other_settings_or_inputs_is_refused(corpus, tmp_path):
    plan(tmp_path / "out", corpus)
    with pytest.raises(StellaError, match=r"was begun with other settings or inputs: prompt was '', is 'q: '\."):
        join(tmp_path / "out", corpus, prompt="q: ")
    other = write_corpus(tmp_path / "b.jsonl", ["one"])
    with pytest.raises(StellaError, match=r"started with different inputs: a.jsonl; now they are b.jsonl"):
        join(tmp_path / "out", other)


# The folder


@pytest.mark.parametrize("name", ["plan/parts.bin", "plan/repeats.bin", "job.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"0")])
def test_a_damaged_plan_is_made_again(corpus, tmp_path, name, damage):
    commit(plan(tmp_path / "out", corpus))
    sound = content(tmp_path / "out")
    damage(tmp_path / "out" / name)
    with pytest.raises(StellaError, match=f"/{name} is |has no {name}"):
        load_job(open_store(tmp_path / "out"))
    plan(tmp_path / "out", corpus)
    assert content(tmp_path / "out") == sound


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"0")])
def test_where_it_is_not_known_what_the_job_is_its_parts_tell(corpus, tmp_path, damage):
    commit(plan(tmp_path / "out", corpus))
    damage(tmp_path / "out" / "job.json")
    before = content(tmp_path / "out")
    with pytest.raises(
        StellaError, match=r"job\.json is missing or damaged, and receipts/part-00001\.json is of a job"
    ):
        plan(tmp_path / "out", corpus, prompt="q: ")
    left = content(tmp_path / "out")
    assert {name: left[name] for name in before} == before


def test_what_is_left_by_a_death_while_planning_is_no_obstacle(corpus, tmp_path):
    plan(tmp_path / "sound", corpus)
    out = tmp_path / "out"
    (out / "plan").mkdir(parents=True)
    for name in ("progress.jsonl", "progress-3.jsonl", ".a.0123abcd.tmp", "plan/.b.0123abcd.tmp", "plan/repeats.bin"):
        (out / name).write_bytes(b"half")
    plan(out, corpus)
    assert content(out) == content(tmp_path / "sound")


def test_inputs_may_move_and_are_found_where_they_were_planned(corpus, tmp_path):
    plan(tmp_path / "out", corpus)
    sound = content(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    moved = corpus.rename(tmp_path / "elsewhere" / "a.jsonl")
    job = plan(tmp_path / "out", moved)
    assert content(tmp_path / "out") == sound
    assert str(job.sources[0].location) == str(moved)
    assert load_job(open_store(tmp_path / "out"), [moved]).sources == job.sources
    with pytest.raises(StellaError, match=r"a\.jsonl does not exist"):
        load_job(open_store(tmp_path / "out"))


def test_no_job_is_told(tmp_path):
    with pytest.raises(StellaError, match=f"holds no embedding job; it has no {JOB}"):
        load_job(open_store(tmp_path))
