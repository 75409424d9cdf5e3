"""The number of usable processors: affinity and control groups of both versions, also inside containers."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stella_jax import cpu_count as module
from stella_jax.cpu_count import cpu_count

Machine = Callable[[str, dict[str, str]], int]


@pytest.fixture
def cpu_count_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """cpu_count of a process with eight processors, in these groups with these files."""

    def found(membership: str, files: dict[str, str]) -> int:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return cpu_count()

    monkeypatch.setattr(module, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(module, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return found


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("", 8),
    ],
)
@pytest.mark.parametrize(
    ("group", "file"),
    [("/", "cpu.max"), ("/a/b", "a/b/cpu.max"), ("/a/b", "a/cpu.max"), ("/machine/c", "cpu.max")],
)
def test_version_2(cpu_count_of, group, file, quota, expected):
    assert cpu_count_of(f"0::{group}\n", {file: quota}) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", 8), ("300000\n", 3), ("250000\n", 3), ("1000\n", 1), ("", 8)])
@pytest.mark.parametrize(
    ("line", "folder"),
    [("3:cpu,cpuacct:/docker/1", "cpu/docker/1"), ("1:cpu:/docker/1", "cpu"), ("3:cpuacct,cpu:/", "cpu")],
)
def test_version_1(cpu_count_of, line, folder, quota, expected):
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert cpu_count_of(f"9:name=systemd:/\n4:cpuset:/docker/1\n{line}\n0::/\n", files) == expected


def test_smallest_quota_counts(cpu_count_of):
    files = {"a/b/cpu.max": "500000 100000", "a/cpu.max": "300000 100000", "cpu.max": "max 100000"}
    assert cpu_count_of("0::/a/b\n", files) == 3


def test_affinity_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MEMBERSHIP", tmp_path / "nothing")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert cpu_count() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_count() == 1


def test_this_machine():
    assert 1 <= cpu_count() <= (os.cpu_count() or 1)
