"""Ranges in files and in job.json."""

import json
import os
import zipfile

import numpy as np
import pytest

from stella_jax.job import ranges as module
from stella_jax.job.ranges import ranges_from_json, ranges_to_json, read_ranges
from stella_jax.quantization import Ranges

ROWS = np.sort(np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32), axis=0)


def same(found: Ranges, rows: np.ndarray) -> bool:
    return found.minimum.tobytes() == rows[0].tobytes() and found.maximum.tobytes() == rows[1].tobytes()


def test_every_type_of_file(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    np.save(tmp_path / "double.npy", ROWS.astype(np.float64))
    np.savez(tmp_path / "a.npz", ROWS)
    np.savez(tmp_path / "b.npz", ranges=ROWS)
    np.savez_compressed(tmp_path / "dims.npz", allow_pickle=False, **{"8": ROWS, "4": ROWS[:, :4]})
    (tmp_path / "a.json").write_text(json.dumps(ROWS.tolist()))
    (tmp_path / "dims.JSON").write_text(json.dumps({"8": ROWS.tolist(), "4": ROWS[:, :4].tolist()}))
    for path in tmp_path.iterdir():
        assert same(read_ranges(path, [8])[8], ROWS), path
    for name in ("dims.npz", "dims.JSON"):
        found = read_ranges(tmp_path / name, [4, 8])
        assert list(found) == [4, 8] and same(found[4], ROWS[:, :4]) and same(found[8], ROWS)


def test_the_ranges_of_a_job_can_be_used_for_another(tmp_path):
    rows = np.array([[-1e-45, 0.1, -3e38], [1 / 3, np.nextafter(np.float32(0.1), np.float32(1)), -1]], np.float32)
    fields = json.loads(json.dumps(ranges_to_json({3: Ranges(*rows)})))
    [(dim, found)] = ranges_from_json(fields).items()
    assert dim == 3 and same(found, rows)
    (tmp_path / "ranges.json").write_text(json.dumps(fields))
    assert same(read_ranges(tmp_path / "ranges.json", [3])[3], rows)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 7)),
        np.zeros((8, 2)),
        np.zeros(16),
        np.zeros((2, 8), bool),
        np.zeros((2, 8), complex),
        np.full((2, 8), np.nan),
        np.full((2, 8), 1e40),
        ROWS[::-1],
    ],
    ids=["columns", "transposed", "flat", "bool", "complex", "nan", "infinite", "swapped"],
)
def test_invalid_arrays(tmp_path, value, refused):
    np.save(tmp_path / "a.npy", value)
    np.savez(tmp_path / "a.npz", value)
    for name in ("a.npy", "a.npz"):
        with refused(name, "ranges"):
            read_ranges(tmp_path / name, [8])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.json", b"[" * 100_000),
        ("a.json", b"\xff"),
        ("a.npy", b"\x93NUMPY"),
        ("a.npy", b"nonsense"),
        ("a.npz", b"PK\3\4nonsense"),
    ],
    ids=range(6),
)
def test_damaged_files(tmp_path, name, content, refused):
    (tmp_path / name).write_bytes(content)
    with refused(f"{name}: ", mask=r"\(.*\)"):
        read_ranges(tmp_path / name, [8])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"3"),
        ("a.json", b"null"),
        ("a.json", b"[[1, 2], [3]]"),
        ("a.json", b'[["a", "b"], ["c", "d"]]'),
        ("a.json", b'{"4": [[1], [2]]}'),
        ("a.npy", b""),
        ("a.txt", b"1 2"),
    ],
)
def test_files_without_ranges(tmp_path, name, content, refused):
    (tmp_path / name).write_bytes(content)
    with refused(name):
        read_ranges(tmp_path / name, [8])


def test_pickles_are_not_opened(tmp_path, refused):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with refused("a.npy: ", "Object arrays", mask=r"\(.*\)"):
        read_ranges(tmp_path / "a.npy", [8])


def test_missing_files_and_files_that_are_too_large(tmp_path, monkeypatch, refused):
    os.mkfifo(tmp_path / "fifo.npy")
    for name in ("a.npy", ".", "fifo.npy"):
        with refused(str(tmp_path / name)):
            read_ranges(tmp_path / name, [8])
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(100_000))
    with refused("a.npz"):
        read_ranges(tmp_path / "a.npz", [8])
    (tmp_path / "a.json").write_bytes(b" " * 1001)
    with refused("a.json"):
        read_ranges(tmp_path / "a.json", [8])


def test_one_array_for_several_heads(tmp_path, refused):
    np.save(tmp_path / "a.npy", ROWS)
    with refused("a.npy"):
        read_ranges(tmp_path / "a.npy", [4, 8])
