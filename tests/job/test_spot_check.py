"""verify --sample: rows that are embedded again, from the inputs, give the same results."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jobs import content, replace_part, write_corpus

from stella_jax import Stella
from stella_jax.cli.main import main
from stella_jax.job import spot_check
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.run import run_job
from stella_jax.job.verify import verify_job
from stella_jax.runner import Runner

TEXTS = [f"{'tea ' * (i % 5)}{i}" for i in range(40)]
OPTIONS = JobOptions(normalize=True, part_rows=8)


@pytest.fixture(scope="module")
def model() -> Stella:
    model = Stella.from_pretrained("tiny", dim=(32, 64))
    model.max_seq_length = 8
    return model


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "a.jsonl", [*TEXTS, *TEXTS[:2]])


@pytest.fixture
def embed(model: Stella, corpus: Path, tmp_path: Path) -> Callable[[], Path]:
    def run() -> Path:
        origin = {"model": "tiny", "revision": None}
        run_job(model, origin, [corpus], tmp_path / "out", OPTIONS, RunOptions(max_rejected=0.5))
        return tmp_path / "out"

    return run


def test_a_valid_job(embed):
    out = embed()
    before = content(out)
    verdict = verify_job(out, sample=10)
    assert (verdict.rows, verdict.sampled, verdict.faults) == (42, 10, ())
    assert content(out) == before


@pytest.mark.parametrize(("rows", "most", "sampled"), [(1000, 16, 42), (1000, 1, 8), (3, 16, 3), (1, 1, 1)])
def test_the_number_of_rows_embedded_again(embed, monkeypatch, rows, most, sampled):
    monkeypatch.setattr(spot_check, "MAX_PARTS", most)
    out, seen, real = embed(), [], Runner.stream

    def stream(self, groups, *args, **options):
        groups = list(groups)
        seen.extend(len(tokens) for tokens in groups)
        return real(self, groups, *args, **options)

    monkeypatch.setattr(Runner, "stream", stream)
    verdict = verify_job(out, sample=rows)
    assert verdict.faults == ()
    assert verdict.sampled == sum(seen)
    assert sum(seen) == sampled or (most == 1 and sum(seen) == 2)  # the last part is short


def swap(values: list) -> None:
    values[5], values[6] = values[6], values[5]


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: swap(columns["embedding_64"]),
        lambda columns: columns["embedding_32"][5].__setitem__(1, columns["embedding_32"][5][1] + 1e-3),
        lambda columns: columns["id"].__setitem__(5, "r999"),
        lambda columns: swap(columns["n_tokens"]),
    ],
    ids=["swapped vectors", "a small difference", "a different id", "swapped tokens"],
)
def test_wrong_rows_with_matching_hashes_are_found_and_redone(embed, change):
    out = embed()
    expected = content(out)
    replace_part(out, 2, change)
    verdict = verify_job(out, sample=1000)
    assert verdict.invalidated == ("part-000000-0002",)
    embed()
    assert content(out) == expected


def test_rows_that_were_not_finite_are_not_faults(embed, model, monkeypatch):
    real = Runner.stream

    def with_nan(self, *args, **options):
        for number, embeddings in real(self, *args, **options):
            embeddings[0][1:2, 5] = np.nan
            yield number, embeddings

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "stream", with_nan)
        out = embed()
    assert len((out / "_job" / "rejected.jsonl").read_text().splitlines()) == 6
    verdict = verify_job(out, sample=1000)
    assert (verdict.faults, verdict.sampled) == ((), 36)


def test_rows_that_are_not_finite_now_are_faults(embed, monkeypatch):
    out, real = embed(), Runner.stream

    def with_nan(self, *args, **options):
        for number, embeddings in real(self, *args, **options):
            embeddings[1][:, 5] = np.nan
            yield number, embeddings

    monkeypatch.setattr(Runner, "stream", with_nan)
    assert len(verify_job(out, sample=1000).faults) == 6


def test_missing_and_changed_inputs(embed, corpus, refused):
    out = embed()
    text = corpus.read_text()
    corpus.write_text(text.replace("tea 1", "tee 1"))
    with refused("a.jsonl: ", mask=r"(?<=part-000000-000)\d"):
        verify_job(out, sample=1000)
    corpus.unlink()
    with refused("a.jsonl", "--input"):
        verify_job(out, sample=1)
    assert verify_job(out).faults == ()


def test_inputs_that_have_moved(embed, corpus, tmp_path, capsys, check_message):
    out = embed()
    (tmp_path / "elsewhere").mkdir()
    moved = corpus.rename(tmp_path / "elsewhere" / corpus.name)
    assert main(["verify", str(out), "--sample", "5", "--input", f"{moved.parent}/*.jsonl"]) == 0
    assert capsys.readouterr().out.endswith("; 5 computed again gave the same result\n")
    assert main(["verify", str(out), "--sample", "5", "--input", str(moved.rename(corpus.with_name("b.jsonl")))]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "a.jsonl", "b.jsonl", "--sample")
    assert main(["verify", str(out), "--input", "b.jsonl"]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "--input: ", "--sample")


def test_one_of_two_inputs_has_moved(model, corpus, tmp_path, refused):
    out, other = tmp_path / "out", tmp_path / "b.jsonl"
    other.write_text('{"id": "other", "text": "x"}\n')
    run_job(model, {"model": "tiny", "revision": None}, [corpus, other], out, OPTIONS, RunOptions(max_rejected=0.5))
    (tmp_path / "elsewhere").mkdir()
    moved = other.rename(tmp_path / "elsewhere" / "b.jsonl")
    with refused("b.jsonl", "--input"):
        verify_job(out, sample=1000)
    assert verify_job(out, sample=1000, inputs=[moved]).sampled == 43
    assert verify_job(out, sample=1000, inputs=[moved, corpus]).faults == ()


def test_the_command(embed, capsys):
    out = embed()
    assert main(["verify", str(out), "--sample", "5"]) == 0
    assert capsys.readouterr().out.endswith("; 5 computed again gave the same result\n")


def test_searching_a_job_by_head(embed, capsys, check_message):
    out = embed()
    for dim in ("32", "64"):
        assert main(["search", str(out), "tea 1", "--dim", dim, "--prompt", "none", "-k", "1"]) == 0
        assert capsys.readouterr().out.startswith("  1  1.0000  r")
    assert main(["search", str(out), "tea", "--dim", "16"]) == 1
    check_message(capsys.readouterr().err.rstrip("\n"), "16", "32 and 64")
