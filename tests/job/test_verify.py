"""verify: all damage is reported, and only damaged parts are redone."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from jobs import content, replace_part

from stella_jax import Stella, StellaError
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.run import run_job
from stella_jax.job.verify import verify_job
from stella_jax.storage.store import LocalStore, open_store

OPTIONS = JobOptions(part_rows=3)
Damage = Callable[[Path], object]


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    rows = [{"id": f"r{i}", "text": f"tea {i}"} for i in range(8)] + [{"id": "no text"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [tmp_path / "a.jsonl"]


@pytest.fixture
def embed(tiny: Stella, corpus: list[Path], tmp_path: Path) -> Callable[[], Path]:
    def run() -> Path:
        options = RunOptions(max_rejected=0.5)
        run_job(tiny, {"model": "tiny", "revision": None}, corpus, tmp_path / "out", OPTIONS, options)
        return tmp_path / "out"

    return run


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def test_a_whole_job(embed) -> None:
    out = embed()
    before = content(out)
    verdict = verify_job(out)
    assert (verdict.rows, verdict.faults, verdict.invalidated) == (8, (), ())
    assert content(out) == before


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda out: flip(out / "part-000000-0001.parquet"), "part-000000-0001.parquet: its sha256"),
        (lambda out: cut(out / "part-000000-0001.parquet"), "part-000000-0001.parquet: "),
        (lambda out: (out / "part-000000-0001.parquet").unlink(), "part-000000-0001.parquet: missing"),
        (lambda out: flip(out / "_job/commits/part-000000-0001.json"), "part-000000-0001.parquet: its commit is"),
        (lambda out: (out / "_job/commits/part-000000-0001.json").unlink(), "part-000000-0001.parquet: its commit is"),
        (lambda out: flip(out / "_job/ids/part-000000-0001.parquet"), "part-000000-0001.parquet: its ids file is"),
    ],
)
def test_damage_to_a_part_is_reported_and_redone(embed, damage: Damage, fault: str) -> None:
    out = embed()
    expected = content(out)
    damage(out)
    verdict = verify_job(out)
    assert verdict.invalidated == ("part-000000-0001",)
    assert len(verdict.faults) == 1
    assert verdict.faults[0].startswith(fault)
    untouched = (out / "part-000000-0000.parquet").stat().st_mtime_ns
    embed()
    assert content(out) == expected
    assert (out / "part-000000-0000.parquet").stat().st_mtime_ns == untouched
    assert verify_job(out).faults == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda c: c["embedding"][1].__setitem__(0, np.nan), "part-000000-0000.parquet: 1 of its rows are not finite"),
        (lambda c: c["n_tokens"].__setitem__(0, 7), "tokens, not 3 with"),
        (lambda c: [column.pop() for column in c.values()], "part-000000-0000.parquet: 2 rows with"),
        (lambda c: c["id"].__setitem__(0, "r5"), "1 rows repeat the id of another"),
    ],
)
def test_the_content_is_checked(embed, change: Callable[[dict[str, list]], object], fault: str) -> None:
    out = embed()
    replace_part(out, 0, change)
    assert fault in "; ".join(verify_job(out).faults)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda out: flip(out / "_job/rejected.jsonl"), "_job/rejected.jsonl: different from the commits"),
        (
            lambda out: (out / ".part-000000-0001.parquet.0a1b2c3d.tmp").touch(),
            "temporary files of killed processes: .part-0",
        ),
        (
            lambda out: (out / "_job/commits/.a.0a1b2c3d.tmp").touch(),
            "temporary files of killed processes: .a.0a1b2c3d.tmp; run",
        ),
        (lambda out: flip(out / "_job/job.json"), "{out}/_job/job.json: damaged"),
        (lambda out: (out / "_job/job.json").unlink(), "_job/job.json: missing"),
    ],
)
def test_damage_to_other_files_is_reported_and_fixed(embed, damage: Damage, fault: str) -> None:
    out = embed()
    expected = content(out)
    damage(out)
    verdict = verify_job(out)
    assert len(verdict.faults) == 1
    assert verdict.faults[0].startswith(fault.format(out=out))
    assert verdict.invalidated == ()
    embed()
    assert content(out) == expected
    assert verify_job(out).faults == ()


def test_temporary_files_of_living_processes_are_not_faults(embed) -> None:
    out = embed()
    with open_store(out).replacing("_job/rejected.jsonl"):
        assert list(out.rglob(".*.tmp"))
        assert verify_job(out).faults == ()


def test_files_that_are_not_parts(embed) -> None:
    out = embed()
    (out / "part-000000-0009.parquet").touch()
    assert verify_job(out).faults == ("files that do not belong to this job: part-000000-0009.parquet",)


def faults(out: Path) -> Sequence[str]:
    try:
        return verify_job(out).faults
    except StellaError as error:
        return [str(error)]


def test_any_flipped_bit_is_found_and_redone(embed) -> None:
    out, random = embed(), Random(3)
    expected = content(out)
    for name, data in expected.items():
        for _ in range(2 if data else 0):
            place = random.randrange(len(data))
            (out / name).write_bytes(data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :])
            assert faults(out), (name, place)
            embed()
            assert content(out) == expected, (name, place)


def test_a_damaged_manifest(embed, refused) -> None:
    out = embed()
    expected = content(out)
    flip(out / "_job/manifest.json")
    with refused("manifest.json"):
        verify_job(out)
    embed()
    assert content(out) == expected


def test_other_directories_and_unfinished_jobs(embed, tmp_path: Path, refused) -> None:
    with refused(str(tmp_path)):
        verify_job(tmp_path)
    out = embed()
    (out / "_job/manifest.json").unlink()
    with refused("out"):
        verify_job(out)


def test_damage_on_read_only_storage(embed, monkeypatch: pytest.MonkeyPatch) -> None:
    out = embed()
    flip(out / "part-000000-0001.parquet")

    def refuse(self, name: str) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(LocalStore, "remove", refuse)
    verdict = verify_job(out)
    assert (len(verdict.faults), verdict.invalidated) == (1, ())
