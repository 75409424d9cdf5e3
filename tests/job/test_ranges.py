"""Ranges from files, and in a job's own JSON."""

import json
import os
import zipfile

import numpy as np
import pytest

from stella_jax import StellaError
from stella_jax.job import ranges as module
from stella_jax.job.ranges import ranges_from_json, ranges_to_json, read_ranges
from stella_jax.quantization import Ranges

ROWS = np.sort(np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32), axis=0)


def same(found: Ranges, rows: np.ndarray) -> bool:
    return found.minimum.tobytes() == rows[0].tobytes() and found.maximum.tobytes() == rows[1].tobytes()


def test_every_kind_of_file(tmp_path):
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


def test_ranges_of_a_job_are_a_file_for_another(tmp_path):
    rows = np.array([[-1e-45, 0.1, -3e38], [1 / 3, np.nextafter(np.float32(0.1), np.float32(1)), -1]], np.float32)
    fields = json.loads(json.dumps(ranges_to_json({3: Ranges(*rows)})))
    [(dim, found)] = ranges_from_json(fields).items()
    assert dim == 3 and same(found, rows)
    (tmp_path / "ranges.json").write_text(json.dumps(fields))
    assert same(read_ranges(tmp_path / "ranges.json", [3])[3], rows)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 7)), r"ranges are float64 \(2, 7\); expected numbers of shape \(2, 8\)"),
        (np.zeros((8, 2)), r"ranges are float64 \(8, 2\); expected"),
        (np.zeros(16), r"ranges are float64 \(16,\); expected"),
        (np.zeros((2, 8), bool), r"ranges are bool \(2, 8\); expected numbers"),
        (np.zeros((2, 8), complex), r"ranges are complex128 \(2, 8\); expected numbers"),
        (np.full((2, 8), np.nan), r"ranges: dimension 0 \(nan to nan\) is not finite"),
        (np.full((2, 8), 1e40), r"ranges: dimension 0 \(inf to inf\) is not finite"),
        (ROWS[::-1], r"ranges: dimension 0 .* has its minimum above its maximum"),
    ],
)
def test_faulty_arrays(tmp_path, value, message):
    np.save(tmp_path / "a.npy", value)
    np.savez(tmp_path / "a.npz", value)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(StellaError, match=f"{name}: {message}"):
            read_ranges(tmp_path / name, [8])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", r"a\.json: damaged \.json file: Expecting"),
        ("a.json", b"[" * 100_000, r"a\.json: damaged \.json file: "),
        ("a.json", b"\xff", r"a\.json: damaged \.json file: "),
        ("a.json", b"3", r"a\.json: ranges are int64 \(\); expected"),
        ("a.json", b"null", r"a\.json: ranges are no table of numbers; expected"),
        ("a.json", b"[[1, 2], [3]]", r"a\.json: ranges are no table of numbers; expected"),
        ("a.json", b'[["a", "b"], ["c", "d"]]', r"a\.json: ranges are <U1 \(2, 2\); expected"),
        ("a.json", b'{"4": [[1], [2]]}', r"a\.json: no ranges for 8 dimensions; it has 4"),
        ("a.npy", b"\x93NUMPY", r"a\.npy: damaged \.npy file: "),
        ("a.npy", b"nonsense", r"a\.npy: damaged \.npy file: "),
        ("a.npz", b"PK\3\4nonsense", r"a\.npz: damaged \.npz file: "),
        ("a.npy", b"", r"a\.npy: 0 bytes; expected an array of shape \(2, dim\)"),
        ("a.txt", b"1 2", r"a\.txt: unsupported file type; supported: \.npy, \.npz, \.json"),
    ],
)
def test_faulty_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StellaError, match=message):
        read_ranges(tmp_path / name, [8])


def test_pickles_are_not_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(StellaError, match=r"a\.npy: damaged \.npy file: Object arrays"):
        read_ranges(tmp_path / "a.npy", [8])


def test_files_that_are_missing_or_none_or_too_large(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.npy")
    for name, message in (("a.npy", "file not found"), (".", "file not found"), ("fifo.npy", "0 bytes|file not found")):
        with pytest.raises(StellaError, match=message):
            read_ranges(tmp_path / name, [8])
    monkeypatch.setattr(module, "LARGEST", 1000)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", bytes(100_000))
    with pytest.raises(StellaError, match=r"damaged .* too large when unpacked"):
        read_ranges(tmp_path / "a.npz", [8])
    (tmp_path / "a.json").write_bytes(b" " * 1001)
    with pytest.raises(StellaError, match="1001 bytes; expected"):
        read_ranges(tmp_path / "a.json", [8])


def test_one_array_for_several_heads(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(StellaError, match=r"a\.npy: one array for 2 heads; name one by each: 4 and 8"):
        read_ranges(tmp_path / "a.npy", [4, 8])
