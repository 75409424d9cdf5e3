"""Teachers' vectors joined to rows by id, against the parts read by pyarrow."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets_of_rows import dataset_of

from stella_jax import Stella
from stella_jax.job import vectors
from stella_jax.job.options import JobOptions
from stella_jax.job.run import run_job
from stella_jax.similarity import unit
from train.data import Needs, with_column
from train.data_reader import read_dataset
from train.teachers import check_dimensions, with_teachers

WORDS = ["fog", "law", "owl", "sea", "ink", "jam", "elm", "oak"]
IDS = Needs(ids=True)


@pytest.fixture(scope="module")
def jobs(tiny: Stella, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same words embedded by two teachers, the second quantized to int8 and not normalized."""
    folder = tmp_path_factory.mktemp("jobs")
    lines = [json.dumps({"id": f"r{i}", "text": word}) for i, word in enumerate(WORDS)]
    (folder / "words.jsonl").write_text("\n".join(lines))
    model = Stella.from_pretrained("tiny", dim=32)
    for name, teacher, options in (
        ("a", tiny, JobOptions(part_rows=3)),
        ("b", model, JobOptions(normalize=False, precision="int8")),
    ):
        run_job(teacher, {"model": "tiny", "revision": None}, [folder / "words.jsonl"], folder / name, options)
    return folder


def rows(folder: Path, ids: list) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": id, "anchor": f"text {i}"}) + "\n" for i, id in enumerate(ids)))
    return path


def test_teacher_vectors_have_unit_length_and_equal_weight(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK_NUMBERS", 64)  # two or so rows at a time
    ids = ["r5", "r0", "r5", "r7"]
    found = with_teachers(read_dataset(rows(tmp_path, ids), IDS), [str(jobs / "a"), str(jobs / "b")]).columns["teacher"]
    table = pq.read_table(jobs / "a").to_pydict()
    by_id = dict(zip(table["id"], np.array(table["embedding"], np.float32), strict=True))
    first = unit(np.stack([by_id[id] for id in ids]))
    assert found.dtype == np.float32 and found.shape == (4, first.shape[1] + 32)
    np.testing.assert_allclose(found[:, : first.shape[1]], first / np.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    expected = unit(Stella.from_pretrained("tiny", dim=32).encode([WORDS[int(id[1:])] for id in ids]))
    np.testing.assert_allclose(found[:, first.shape[1] :], expected / np.sqrt(2), atol=0.02)


def test_the_hash_covers_the_vectors(jobs, tmp_path):
    plain = read_dataset(rows(tmp_path, ["r0", "r1"]), IDS)
    hashes = {with_teachers(plain, [str(jobs / name) for name in names]).sha256 for names in ("a", "b", "ab", "ba")}
    assert len(hashes | {plain.sha256}) == 5
    again = read_dataset(rows(tmp_path, ["r1", "r0"]), IDS)
    assert again.sha256 == plain.sha256
    assert with_teachers(again, [str(jobs / "a")]).sha256 != with_teachers(plain, [str(jobs / "a")]).sha256


def test_rows_without_a_vector_are_counted_and_the_first_is_named(jobs, tmp_path, refused):
    dataset = read_dataset(rows(tmp_path, ["r0", "s", 7, "r1"]), IDS)
    with refused(f"2 of the 4 rows of {tmp_path}/rows.jsonl", "'s'"):
        with_teachers(dataset, [str(jobs / "a")])


def test_rows_without_ids_and_directories_without_a_job(jobs, tmp_path, refused):
    path = tmp_path / "plain.jsonl"
    path.write_text('{"anchor": "a"}\n')
    with refused("'id'"):
        with_teachers(read_dataset(path, IDS), [str(jobs / "a")])
    with refused(str(tmp_path)):
        with_teachers(read_dataset(rows(tmp_path, ["r0"]), IDS), [str(tmp_path)])
    shutil.copytree(jobs / "a", tmp_path / "a")
    next((tmp_path / "a").glob("part-*.parquet")).unlink()
    with refused(f"{tmp_path}/a/part-", mask=r"(?<=part-)[\d-]+"):
        with_teachers(read_dataset(rows(tmp_path, ["r0"]), IDS), [str(tmp_path / "a")])


def test_sets_have_teachers_of_one_dimension(refused):
    one, other = (
        with_column(dataset_of([("a",)], source), "teacher", np.ones((1, n), np.float32))
        for source, n in (("a.jsonl", 3), ("b.jsonl", 4))
    )
    check_dimensions([one, one, dataset_of([("a",)], "c.jsonl")])
    with refused("a.jsonl", "b.jsonl"):
        check_dimensions([one, other])
