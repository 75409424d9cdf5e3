"""Jobs on a small disk that becomes full at one step of the job after the other."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from jobs import content, leftovers

from stella_jax import Stella, StellaError
from stella_jax.job.options import JobOptions
from stella_jax.job.run import run_job
from stella_jax.job.verify import verify_job

pytestmark = pytest.mark.slow

BLOCK = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Sets the size of the disk behind a folder, in blocks; "ro" makes it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={BLOCK}", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a disk of a few kilobytes needs the right to mount: {mounted.stderr.strip()}")

    def resize(blocks: int, access: str = "rw") -> Path:
        subprocess.run(["mount", "-o", f"remount,{access},size={blocks * BLOCK}", str(folder)], check=True)
        return folder

    yield resize
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_job_resumes_as_a_full_disk_grows(tiny: Stella, short_corpus: Path, tmp_path, disk, tell) -> None:
    options = JobOptions(part_rows=200, split_bytes=2**24)

    def embed(out: Path):
        return run_job(tiny, {"model": "tiny", "revision": None}, [short_corpus], out, options)

    embed(tmp_path / "undisturbed")
    refused, kept, blocks = 0, [], 2
    while True:
        out = disk(blocks) / "out"
        try:
            summary = embed(out)
            break
        except StellaError as error:
            sentence = str(error)
        assert str(out) in sentence and "full" in sentence
        refused += 1
        assert leftovers(out) == []
        kept.append(len(list(out.glob("_job/commits/*"))))
        blocks += 3
        assert blocks < 1000
    assert refused > 20
    assert kept == sorted(kept)
    assert {0, 1, 2, 5, 8} <= {*kept}
    assert summary.rows < 2000
    assert content(out) == content(tmp_path / "undisturbed")
    fill(out.parent / "fill")
    with pytest.raises(StellaError, match="full"):
        verify_job(out)
    (out.parent / "fill").unlink()
    disk(blocks + 20)
    assert verify_job(out).faults == ()
    disk(blocks + 20, "ro")
    assert verify_job(out).faults == ()
    unread = [line for line in (out / "_job/progress.jsonl").read_text().splitlines() if not readable(line)]
    tell(
        f"{refused} times full, up to {kept[-1]} of 11 parts kept, {blocks} blocks in the end; {len(unread)} lines cut"
    )
    assert unread == []


def fill(path: Path) -> None:
    """Fills the disk."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(BLOCK)):
            pass


def readable(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
