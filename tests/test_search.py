"""Exact search over a finished job, against all similarities computed at once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stella_jax import Stella, StellaError, search
from stella_jax.job.rows import Fields
from stella_jax.job.run import Running, run_job
from stella_jax.job.settings import Settings
from stella_jax.search import Index

WORDS = ["fog", "law", "owl", "sea", "ink", "jam", "elm", "oak", "ash", "bee", "cow", "fog"]
ORIGIN = {"model": "tiny", "revision": None}


@pytest.fixture(scope="module")
def job(tiny: Stella, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve words over two inputs and four parts, a rejected row among them, the last word equal to the first."""
    folder = tmp_path_factory.mktemp("job")
    lines = [json.dumps({"id": f"r{i}", "text": word}) for i, word in enumerate(WORDS)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:3], "broken", *lines[3:7]]))
    (folder / "b.jsonl").write_text("\n".join(lines[7:]))
    settings = Settings(Fields(), prompt="", normalize=False, part_rows=4)
    run_job(tiny, ORIGIN, [folder / "a.jsonl", folder / "b.jsonl"], folder / "out", settings, Running(0.5))
    return folder


@pytest.fixture
def copied(job: Path, tmp_path: Path) -> Path:
    """A copy of the job to damage; its inputs are still those of the original."""
    return Path(shutil.copytree(job / "out", tmp_path / "out"))


@pytest.mark.parametrize("k", [1, 3, 12, 50])
@pytest.mark.parametrize("block", [2**23, 32 * 3])
def test_the_nearest_of_all(tiny, job, monkeypatch, k, block):
    monkeypatch.setattr(search, "BLOCK", block)
    index = Index.open(job / "out")
    query, vectors = index.model.encode_query("owl"), tiny.encode(WORDS)
    scores = index.model.similarity_pairwise(np.tile(query, (len(WORDS), 1)), vectors)
    np.testing.assert_allclose(scores, index.model.similarity(query, vectors)[0], atol=1e-6)
    expected = np.argsort(-scores, kind="stable")[:k]
    hits = index.search("owl", k)
    assert [hit.id for hit in hits] == [f"r{i}" for i in expected]
    np.testing.assert_allclose([hit.score for hit in hits], scores[expected], atol=1e-6)


def test_equals_come_in_the_order_of_the_corpus(job):
    hits = Index.open(job / "out").search("fog", 12, prompt="")
    assert [hit.id for hit in hits][:2] == ["r0", "r11"]
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_texts_come_from_the_inputs(job):
    index = Index.open(job / "out")
    hits = index.search("sea", 12)
    assert index.texts(hits) == {f"r{i}": word for i, word in enumerate(WORDS)}
    assert set(index.texts(hits[:2])) == {hit.id for hit in hits[:2]}


def test_texts_of_inputs_that_have_gone_or_changed_are_left_out(tiny, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    settings = Settings(Fields(), prompt="", normalize=False, part_rows=2)
    run_job(tiny, ORIGIN, [tmp_path / f"{name}.txt" for name in "abc"], tmp_path / "out", settings)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").write_text("changed\n")
    index = Index.open(tmp_path / "out")
    assert index.texts(index.search("b", 3)) == {"c.txt:1": "c"}


def test_an_unfinished_job_is_refused(copied):
    (copied / "manifest.json").unlink()
    (copied / "receipts" / "part-00002.json").unlink()
    with pytest.raises(StellaError, match=r"holds 3 of the 4 parts of its job; run its embed command again"):
        Index.open(copied)
    with pytest.raises(StellaError, match="holds no embedding job"):
        Index.open(copied / "receipts")


def test_damaged_and_missing_parts_are_named(copied):
    index = Index.open(copied)
    path = copied / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    for damaged in (content[:-1], b"", bytes([*content[:300], content[300] ^ 1, *content[301:]])):
        path.write_bytes(damaged)
        with pytest.raises(StellaError, match=r"part-00001\.parquet is damaged \("):
            index.search("owl", 3)
    path.unlink()
    with pytest.raises(StellaError, match=r"part-00001\.parquet is missing; run the embed command again"):
        index.search("owl", 3)
    (copied / "manifest.json").write_text("{")
    with pytest.raises(StellaError, match=r"manifest\.json is damaged"):
        Index.open(copied)


def test_only_the_model_that_embedded_may_search(job, copied, checkpoint_copy):
    elsewhere = shutil.copytree(Path(search.__file__).parent / "tiny", copied.parent / "moved")
    assert Index.open(copied, str(elsewhere)).search("owl", 1)
    tokenizer = elsewhere / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(StellaError, match=r"is not the model that embedded .*: tokenizer differ"):
        Index.open(copied, str(elsewhere))
    with pytest.raises(StellaError, match="encoder, heads, tokenizer, settings differ"):
        Index.open(copied, str(checkpoint_copy()))
