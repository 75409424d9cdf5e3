import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import systems
from bench.encode import check_same, workloads
from bench.inputs import long_texts
from bench.on_torch import BATCH_TOKENS, batches_by_tokens
from bench.systems import BATCH_SIZE, LeftOutError, System, batches_of_32, peers


def test_batches_are_sorted_longest_first() -> None:
    texts = ["a" * (i % 50) for i in range(70)]
    places = list(batches_of_32(texts, 512))
    assert [len(batch) for batch in places] == [BATCH_SIZE, BATCH_SIZE, 6]
    order = [i for batch in places for i in batch]
    assert sorted(order) == list(range(70))
    assert [len(texts[i]) for i in order] == sorted(map(len, texts), reverse=True)


def test_batches_by_tokens() -> None:
    texts = ["a" * (9 * i) for i in range(1000)] + ["a" * 10**6] * 9
    places = list(batches_by_tokens(texts, 8192))
    assert sorted(i for batch in places for i in batch) == list(range(1009))
    sizes = [len(batch) * min(8192, 2 + max(len(texts[i]) for i in batch) // 3) for batch in places]
    assert max(sizes) <= BATCH_TOKENS and min(sizes[:-1]) > 0.9 * BATCH_TOKENS
    assert [len(batch) for batch in places[:2]] == [8, 8]


def test_padded_tokens_are_counted() -> None:
    assert System("some", zeros).computed(["long text", "a"], [5, 3], 512) == 10
    assert System("some", zeros, pads=False).computed(["long text", "a"], [5, 3], 512) == 8


def zeros(texts: list[str], length: int) -> np.ndarray:
    return np.zeros((len(texts), 1))


def checkpoint(folder: Path, kind: str = "gte") -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


def test_peer_that_cannot_run_is_left_out(tmp_path, monkeypatch) -> None:
    def missing(directory: Path, dtype: str) -> System:
        raise LeftOutError("openvino is not installed")

    there = System("there", zeros)
    monkeypatch.setattr(systems, "PEERS", {"openvino": missing, "there": lambda directory, dtype: there})
    found, sentences = peers(checkpoint(tmp_path), "float32", ["openvino", "there"])
    assert found == [there]
    assert sentences == ["openvino is left out in float32: openvino is not installed."]
    assert peers(checkpoint(tmp_path, "new"), "float32", ["there"])[0] == []


def test_missing_package_leaves_its_peer_out(tmp_path, monkeypatch) -> None:
    for package in ("torch", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
    found, sentences = peers(checkpoint(tmp_path), "float32", list(systems.PEERS))
    assert not found
    assert [sentence.split(" is left out")[0] for sentence in sentences] == list(systems.PEERS)
    assert all("is not installed" in sentence for sentence in sentences)


def test_too_large_scores_are_left_out() -> None:
    system = System("some", zeros, score_bytes=400)
    assert not system.too_large(1, 128)
    assert "left out at 2000000 tokens" in system.too_large(1, 2_000_000)


def test_different_vectors_are_detected() -> None:
    ours = np.eye(3, dtype=np.float32)
    check_same({"ours": ours, "theirs": 2 * ours}, 0.9999)
    with pytest.raises(SystemExit, match="theirs"):
        check_same({"ours": ours, "theirs": ours[::-1]}, 0.9999)
    with pytest.raises(SystemExit, match="theirs"):
        check_same({"ours": ours, "theirs": np.full_like(ours, np.nan)}, 0.9999)


def test_long_texts_fill_their_length_and_differ() -> None:
    texts = long_texts(["some words of a corpus", "and a few more"] * 3, 4, 128)
    assert all(len(text) == 8 * 128 for text in texts)
    assert len(set(texts)) == 4


def test_workloads_have_the_same_tokens_at_every_length() -> None:
    work = workloads(["a text of the corpus"] * 9, [128, 8192], 5, 512)
    assert [each.name for each in work] == ["16 x 128 tokens", "1 x 8192 tokens", "mixed, 5 texts"]
    assert [(len(each.texts), each.length) for each in work] == [(16, 128), (1, 8192), (5, 512)]
    assert len(workloads(["a"], [], 1, 512)) == 1
