"""Estimates of jobs: totals from a sample, their standard errors, and the command."""

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stella_jax import Stella
from stella_jax.chips import Chips
from stella_jax.cli.main import main
from stella_jax.dry_run.estimate import Estimate, Total, estimate_job
from stella_jax.flops import text_flops
from stella_jax.job.options import JobCommand, JobOptions, ModelOptions
from stella_jax.readers import sample
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.rows import RowFields
from stella_jax.readers.sample import sample_inputs

ROWS = 6000


def records(count: int = ROWS) -> list[dict]:
    """Rows of increasing, very different lengths; one in 50 is invalid."""
    random = Random(0)
    lengths = [int(random.lognormvariate(1 + i / count, 0.7)) + 1 for i in range(count)]
    return [{"id": f"r{i}", "text": "tea " * n} if i % 50 else {"id": i} for i, n in enumerate(lengths)]


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def in_one(folder: Path, rows: list[dict]) -> None:
    (folder / "a.jsonl").write_bytes(lines(rows))


def in_many(folder: Path, rows: list[dict]) -> None:
    bounds = sorted({0, len(rows), *Random(1).sample(range(len(rows)), 300)})
    for start, stop in pairwise(bounds):
        (folder / f"{start:05}.jsonl").write_bytes(lines(rows[start:stop]))


def compressed(folder: Path, rows: list[dict]) -> None:
    for i in range(200):
        (folder / f"{i:03}.jsonl.gz").write_bytes(gzip.compress(lines(rows[30 * i : 30 * (i + 1)])))


def in_groups(folder: Path, rows: list[dict], size: int = 200) -> None:
    table = pa.table({"id": [str(row["id"]) for row in rows], "text": [row.get("text") for row in rows]})
    pq.write_table(table, folder / "a.parquet", row_group_size=size)


def command(*inputs: Path, **options) -> JobCommand:
    return JobCommand(tuple(map(str, inputs)), "", ModelOptions(dim=32), JobOptions(**options))


def estimated(*inputs: Path, **options) -> Estimate:
    return estimate_job(command(*inputs, **options), tokens_per_second=1.0)


def set_place_bytes(patch: pytest.MonkeyPatch, size: int) -> None:
    patch.setattr(sample, "BLOCK_BYTES", (size,))


@pytest.fixture(scope="module")
def tokens() -> int:
    """The tokens of all rows."""
    texts = [row["text"] for row in records() if "text" in row]
    return sum(len(text.ids) for text in Stella.from_pretrained("tiny", dim=32).tokenize(texts))


@pytest.mark.parametrize("write", [in_one, in_many, compressed, in_groups])
def test_small_inputs_are_counted(write: Callable, tmp_path: Path, tokens: int):
    write(tmp_path, records())
    found = estimated(*sorted(tmp_path.iterdir()), part_rows=100)
    for total, true in ((found.rows, ROWS), (found.rejected, ROWS / 50), (found.tokens, tokens)):
        assert total == (pytest.approx(true), 0)
    assert found.sampled == ROWS - ROWS // 50
    assert f"rows        {ROWS}, {ROWS // 50} of them invalid\ntokens      {tokens}, " in str(found)


def in_small_groups(folder: Path, rows: list[dict]) -> None:
    in_groups(folder, rows, 40)


@pytest.mark.parametrize("write", [in_one, in_many, compressed, in_small_groups])
def test_a_sample_is_within_its_standard_error(
    write: Callable, tmp_path: Path, tokens: int, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path, records())
    files = sorted(tmp_path.iterdir())
    set_place_bytes(monkeypatch, sum(file.stat().st_size for file in files) // 300)
    found = estimated(*files)
    assert found.sampled < ROWS / 2
    for total, true in ((found.rows, ROWS), (found.tokens, tokens), (found.rejected, ROWS / 50)):
        assert 0 < total.error < 0.3
        assert abs(total.value - true) < 4 * total.error * true
    assert "one standard error" in str(found)


def test_the_lengths_of_rows_cause_no_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Over many seeds the mean is right, although blocks start in long rows more often than in short ones."""
    in_one(tmp_path, [{"text": "x" * (2000 if i % 10 == 0 else 20)} for i in range(3000)])
    files = open_inputs([tmp_path / "a.jsonl"], RowFields())
    set_place_bytes(monkeypatch, 1000)
    means = []
    for seed in range(30):
        monkeypatch.setattr(sample, "SEED", seed)
        blocks, is_all = sample_inputs(files, RowFields())
        assert not is_all
        means.append(files[0].size * np.mean([block.rows / block.size for block in blocks]))
    assert abs(np.mean(means) - 3000) < 4 * np.std(means) / np.sqrt(len(means))


def test_the_sample_is_deterministic_and_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch):
    set_place_bytes(monkeypatch, 500)
    read = []
    for count in (ROWS, 4 * ROWS):
        in_one(tmp_path, records(count))
        files = open_inputs([tmp_path / "a.jsonl"], RowFields())
        blocks, _ = sample_inputs(files, RowFields())
        assert sample_inputs(files, RowFields()) == (blocks, False)
        read.append(sum(block.size for block in blocks))
    assert read[1] <= read[0] * 1.1


def test_rows_longer_than_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    in_one(tmp_path, [{"text": "tea " * 1000} for _ in range(400)])
    monkeypatch.setattr(sample, "BLOCK_BYTES", (2**6, 2**14))
    monkeypatch.setattr(sample, "ENOUGH_ROWS", 100)
    found = estimated(tmp_path / "a.jsonl")
    assert found.sampled >= 100 and abs(found.rows.value - 400) < 4 * found.rows.error * 400


def test_kept_columns_and_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused):
    """No weights are loaded if nothing is measured."""
    monkeypatch.setattr(Stella, "load_weights", lambda _: pytest.fail("weights were loaded"))
    pq.write_table(pa.table({"text": ["tea"] * 3, "year": [1, None, 3]}), tmp_path / "a.parquet")
    found = estimated(tmp_path / "a.parquet", fields=RowFields(keep=("year",)), precision="binary")
    assert (found.rows, found.rejected, found.row_bytes) == (Total(3), Total(0), 4)
    with refused("a.parquet", "'month'"):
        estimated(tmp_path / "a.parquet", fields=RowFields(keep=("month",)))


def test_a_known_number_of_rows(tmp_path: Path, tokens: int, monkeypatch: pytest.MonkeyPatch):
    in_one(tmp_path, records())
    set_place_bytes(monkeypatch, 1000)
    found = estimate_job(command(tmp_path / "a.jsonl"), 1.0, rows=ROWS)
    assert found.rows == Total(ROWS)
    assert 0 < abs(found.tokens.value - tokens) < 4 * found.tokens.error * tokens


def test_the_rate_of_a_chip_is_a_share_of_its_peak(tmp_path: Path):
    in_one(tmp_path, [{"text": "tea"}] * 4)
    found = estimate_job(command(tmp_path / "a.jsonl"), chips=Chips("v5e", 64))
    model = Stella.from_pretrained("tiny", dim=32)
    [text] = model.tokenize(["tea"])
    assert found.rate.value == pytest.approx(0.4 * 197e12 * len(text.ids) / text_flops(model.config, 8))
    assert found.part_rows == 65_536
    shown = str(found)
    assert "(an estimate: 40% of v5e's published 197 TFLOP/s" in shown and "on 64 x v5e)" in shown


def test_the_rate_is_measured_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stella_jax.dry_run.estimate.MEASURED_SECONDS", 0.01)
    in_one(tmp_path, [{"text": "tea"}] * 4)
    assert estimate_job(command(tmp_path / "a.jsonl")).rate.source == "measured: 32 texts of 8 tokens on 1 x cpu"


def test_jobs_that_cannot_be_estimated(tmp_path: Path, refused):
    in_one(tmp_path, [{"text": 1}])
    with refused("inputs"):
        estimated(tmp_path / "a.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with refused("inputs"):
        estimated(tmp_path / "empty.jsonl")
    float32 = JobCommand((str(tmp_path / "a.jsonl"),), "", ModelOptions(dtype="float32"), JobOptions())
    with refused("--chips", "--dtype"):
        estimate_job(float32, chips=Chips("v6e", 1))


def test_a_dry_run_of_all_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    in_one(tmp_path, [{"id": "x", "text": "tea"}, {"id": "x", "text": "tea"}, {"id": "y"}])
    options = ["--dry-run", "--all-rows", "--tokens-per-second", "10", "--dim", "32"]
    assert main(["embed", str(tmp_path / "a.jsonl"), *options]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == [
        "a.jsonl:3: text is missing",
        "a.jsonl:2: duplicate id x, first seen at a.jsonl:1",
        "3 rows: 1 invalid, 1 with a repeated id",
    ]
    assert shown[4] == "rows        3, 1 of them invalid"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--out"),
        (["--out", "x", "--all-rows"], "--all-rows"),
        (["--out", "x", "--chips", "v5e:2"], "--chips"),
        (["--out", "x", "--tokens-per-second", "2"], "--tokens-per-second"),
        (["--dry-run", "--chips", "v5e", "--tokens-per-second", "2"], "--tokens-per-second"),
        *((["--dry-run", "--tokens-per-second", rate], rate) for rate in ("0", "-1", "nan", "inf", "1e999", "fast")),
        *((["--dry-run", "--chips", chips], "--chips") for chips in ("v99", "v5e:0", "v5e:-1", "v5e:x")),
        (["--dry-run", "--part-rows", "9223372036854775808"], "9223372036854775808"),
        (["--dry-run", "--split-bytes", "9" * 5000], "--split-bytes"),
        (["--dry-run", "--dims", "32,99999999999"], "99999999999"),
        (["--dry-run", "--grace", "99999999999"], "99999999999"),
    ],
)
def test_wrong_usage(options: list[str], named: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["embed", "a.jsonl", *options])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("stella-jax embed: error: ") and named in error
