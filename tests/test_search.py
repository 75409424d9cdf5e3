"""Exact search in a finished job, against all similarities computed at once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stella_jax import Stella, search, similarity
from stella_jax.job import vectors
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.output_columns import column_of
from stella_jax.job.part_file import part_table, write_part
from stella_jax.job.ranges import ranges_to_json
from stella_jax.job.run import run_job
from stella_jax.option_values import PRECISIONS
from stella_jax.quantization import Ranges, quantize
from stella_jax.search import Index
from stella_jax.storage.store import open_store
from stella_jax.tokenizer.tokenizer import Tokens

WORDS = ["fog", "law", "owl", "sea", "ink", "jam", "elm", "oak", "ash", "bee", "cow", "fog"]
ORIGIN = {"model": "tiny", "revision": None}


@pytest.fixture(scope="module")
def job(tiny: Stella, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve words and a rejected row in two inputs and four parts; the last word equals the first."""
    folder = tmp_path_factory.mktemp("job")
    lines = [json.dumps({"id": f"r{i}", "text": word}) for i, word in enumerate(WORDS)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:3], "broken", *lines[3:7]]))
    (folder / "b.jsonl").write_text("\n".join(lines[7:]))
    settings = JobOptions(normalize=False, part_rows=4)
    run_job(tiny, ORIGIN, [folder / "a.jsonl", folder / "b.jsonl"], folder / "out", settings, RunOptions(0.5))
    return folder


@pytest.fixture
def copied(job: Path, tmp_path: Path) -> Path:
    """A copy of the job to damage, with the inputs of the original."""
    return Path(shutil.copytree(job / "out", tmp_path / "out"))


@pytest.mark.parametrize("block", [2**23, 32 * 3])
def test_nearest_rows(tiny, job, monkeypatch, block):
    """The job's texts are cut at eight tokens, a query's prompt alone has 24."""
    monkeypatch.setattr(vectors, "BLOCK_NUMBERS", block)
    index = Index.open(job / "out")
    query, embeddings = index.model.encode_query("owl"), tiny.encode(WORDS)
    scores = index.model.similarity_pairwise(np.tile(query, (len(WORDS), 1)), embeddings)
    np.testing.assert_allclose(scores, index.model.similarity(query, embeddings)[0], atol=1e-6)
    for k in (1, 3, 12, 50):
        expected = np.argsort(-scores, kind="stable")[:k]
        hits = index.search("owl", k)
        assert [hit.id for hit in hits] == [f"r{i}" for i in expected]
        np.testing.assert_allclose([hit.score for hit in hits], scores[expected], atol=1e-6)


def test_equal_rows_keep_the_order_of_the_corpus(job):
    hits = Index.open(job / "out").search("fog", 12, prompt="")
    assert [hit.id for hit in hits][:2] == ["r0", "r11"]
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_texts_of_hits(job):
    index = Index.open(job / "out")
    hits = index.search("sea", 12)
    assert index.texts(hits) == {hit: WORDS[int(hit.id[1:])] for hit in hits}
    assert set(index.texts(hits[:2])) == set(hits[:2])


def test_texts_of_missing_or_changed_inputs_are_left_out(tiny, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    settings = JobOptions(normalize=False, part_rows=2)
    run_job(tiny, ORIGIN, [tmp_path / f"{name}.txt" for name in "abc"], tmp_path / "out", settings)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").write_text("changed\n")
    index = Index.open(tmp_path / "out")
    assert {hit.id: text for hit, text in index.texts(index.search("b", 3)).items()} == {"c.txt:1": "c"}


def test_unfinished_job(copied, refused):
    (copied / "_job" / "manifest.json").unlink()
    (copied / "_job" / "commits" / "part-000000-0002.json").unlink()
    with refused(str(copied)):
        Index.open(copied)
    with refused("_job"):
        Index.open(copied / "_job")


def test_invalid_arguments(copied, refused):
    with refused("directories"):
        Index.open([])
    with refused("k"):
        Index.open(copied).search("owl", 0)


def test_damaged_and_missing_parts(copied, refused):
    index = Index.open(copied)
    path = copied / "part-000000-0001.parquet"
    content = bytearray(path.read_bytes())
    for damaged in (content[:-1], b"", bytes([*content[:300], content[300] ^ 1, *content[301:]])):
        path.write_bytes(damaged)
        with refused("part-000000-0001.parquet", varies=True):
            index.search("owl", 3)
    path.unlink()
    with refused("part-000000-0001.parquet"):
        index.search("owl", 3)
    (copied / "_job" / "manifest.json").write_text("{")
    with refused("manifest.json", varies=True):
        Index.open(copied)


def test_another_model(job, copied, checkpoint_copy, refused):
    elsewhere = shutil.copytree(Path(search.__file__).parent / "tiny", copied.parent / "moved")
    assert Index.open(copied, str(elsewhere)).search("owl", 1)
    tokenizer = elsewhere / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with refused("tokenizer"):
        Index.open(copied, str(elsewhere))
    with refused("encoder", "heads", "tokenizer", "settings"):
        Index.open(copied, str(checkpoint_copy()))


# Other precisions


def at_precision(out: Path, precision: str, ranges: dict[int, Ranges] | None = None) -> Path:
    """Rewrites the job as `embed --precision` would write it."""
    store = open_store(out)
    manifest = store.read_json("_job/manifest.json")
    dims = manifest["dims"]
    for entry in manifest["parts"]:
        table = pq.read_table(out / entry["file"])
        columns = [column_of(dim, dims) for dim in dims]
        arrays = [table[column_of(dim, dims)].combine_chunks().flatten().to_numpy().reshape(-1, dim) for dim in dims]
        found = [quantize(array, precision, (ranges or {}).get(dim)) for array, dim in zip(arrays, dims, strict=True)]
        tokens = [Tokens([1] * count, False) for count in table["n_tokens"].to_pylist()]
        write_part(
            store, entry["file"], part_table(table["id"].to_pylist(), dict(zip(columns, found, strict=True)), tokens)
        )
    store.write_json("_job/manifest.json", manifest | {"precision": precision, "ranges": ranges_to_json(ranges or {})})
    return out


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nearest_rows_at_every_precision(tiny, copied, monkeypatch, precision):
    monkeypatch.setattr(vectors, "BLOCK_NUMBERS", 32 * 3)
    embeddings = tiny.encode(WORDS)
    ranges = Ranges.of(embeddings)
    index = Index.open(at_precision(copied, precision, {32: ranges}))
    query, rows = index.model.encode_query("owl"), quantize(embeddings, precision, ranges)
    if precision.endswith("binary"):
        rows = np.where(embeddings > 0, 1, -1)
    elif precision.endswith("int8"):
        rows = (rows.astype(float) + (128 if precision == "int8" else 0)) * ranges.steps + ranges.minimum
    scores = similarity.similarity_pairwise("cosine", np.tile(query, (len(WORDS), 1)), rows)
    for k in (3, 12):
        expected = np.argsort(-scores, kind="stable")[:k]
        hits = index.search("owl", k)
        assert [hit.id for hit in hits] == [f"r{i}" for i in expected]
        np.testing.assert_allclose([hit.score for hit in hits], scores[expected], rtol=1e-6)
    assert [hit.id for hit in index.search("fog", 12, prompt="")][:2] == ["r0", "r11"]


def test_part_of_another_precision(copied, refused):
    at_precision(copied, "float16")
    store = open_store(copied)
    store.write_json("_job/manifest.json", store.read_json("_job/manifest.json") | {"precision": "binary"})
    with refused("0000.parquet", "halffloat", "int8", varies=True):
        Index.open(copied).search("owl", 1)


# Several directories


@pytest.fixture
def other(tiny: Stella, tmp_path: Path) -> Path:
    """A job of two more words, one of which has an id and a word of the first job."""
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps(row) for row in ({"id": "r0", "text": "fog"}, {"text": "owl"}))
    )
    settings = JobOptions(normalize=False, part_rows=1)
    run_job(tiny, ORIGIN, [tmp_path / "c.jsonl"], tmp_path / "other", settings)
    return tmp_path / "other"


def test_several_directories(job, other):
    first, second = str(job / "out"), str(other)
    index = Index.open([job / "out", other])
    hits = index.search("fog", 14, prompt="")
    assert [(hit.id, hit.directory) for hit in hits[:3]] == [("r0", first), ("r11", first), ("r0", second)]
    assert len(hits) == len(set(hits)) == 14
    texts = index.texts(hits)
    assert [texts[hit] for hit in hits[:3]] == ["fog"] * 3 and len(texts) == 14
    hits = Index.open([other, job / "out"]).search("fog", 2, prompt="")
    assert [hit.directory for hit in hits] == [second, first]


def test_directories_that_do_not_fit_together(job, other, copied, refused):
    at_precision(other, "binary")
    with refused("precision", varies=True):
        Index.open([job / "out", other])
    store = open_store(copied)
    manifest = store.read_json("_job/manifest.json")
    store.write_json("_job/manifest.json", manifest | {"normalize": True})
    with refused("normalize", varies=True):
        Index.open([job / "out", copied])
    manifest["fingerprint"]["model"]["encoder"] = "0" * 64
    store.write_json("_job/manifest.json", manifest)
    with refused("encoder", varies=True):
        Index.open([job / "out", copied])
    store.write_json("_job/manifest.json", manifest | {"dims": [64]})
    with refused("64", "32"):
        Index.open([job / "out", copied])
