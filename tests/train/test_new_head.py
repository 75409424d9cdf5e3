"""A new head: initialized by the seed, trained, saved, and loaded by other libraries."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from paths import GOLDENS

from stella_jax import Stella
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.save import save_params
from stella_jax.sharding import make_mesh
from train.new_head import with_new_head, write_new_head
from train.sections import NewHeadSection

TEXTS = ["what is tea?", "A drink made of leaves, and a rather long sentence about it.", "x"]


def with_head(name: str, seed: int = 42, **keys: Any) -> Checkpoint:
    section = NewHeadSection(keys.pop("dim", 96), **keys)
    return with_new_head(Checkpoint.open(GOLDENS / name), section, seed)


def load(checkpoint: Checkpoint) -> Any:
    return checkpoint.load_model([checkpoint.spec.head(None)], make_mesh())


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves a checkpoint with its new head and some changed parameters, as an export does."""

    def saved(checkpoint: Checkpoint, moved: str = "head/", native: bool = True) -> Path:
        params = {name: leaf + 0.01 for name, leaf in load(checkpoint).params().items() if name.startswith(moved)}
        finish = partial(write_new_head, checkpoint)
        save_params(checkpoint, [checkpoint.spec.head(None)], params, tmp_path / "x", native=native, finish=finish)
        return tmp_path / "x"

    return saved


def test_the_same_seed_gives_the_same_head():
    first, second, other = (load(with_head("stella", seed)).params() for seed in (1, 1, 2))
    for name in ("head/kernel", "head/bias"):
        np.testing.assert_array_equal(first[name], second[name])
        assert (first[name] != other[name]).all()
    np.testing.assert_array_equal(
        first["encoder/embeddings/word/embedding"], other["encoder/embeddings/word/embedding"]
    )


def test_a_new_head_is_initialized_like_torch_s_linear():
    """Uniform up to 1 / sqrt(hidden_size), whose standard deviation is that over sqrt(3)."""
    params, bound = load(with_head("stella", dim=1000)).params(), 64**-0.5
    assert params["head/kernel"].shape == (64, 1000) and params["head/bias"].shape == (1000,)
    for leaf in (params["head/kernel"], params["head/bias"]):
        assert leaf.dtype == jnp.float32 and np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_a_new_head_is_the_default_beside_the_others():
    base = Checkpoint.open(GOLDENS / "stella")
    found = with_head("stella")
    assert found.spec.dims == (*sorted((*base.spec.dims, 96)),)
    assert load(found).dims == (96,)
    before, after = (c.load_model([c.spec.head(48)], make_mesh()).params()["head/kernel"] for c in (base, found))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", ["stella", "stella-finetuned-st6"])
def test_a_new_head_replaces_one_of_its_dimension(saved, name):
    checkpoint = with_head(name, dim=64)
    assert checkpoint.spec.dims == Checkpoint.open(GOLDENS / name).spec.dims
    path = saved(checkpoint)
    np.testing.assert_allclose(
        load(Checkpoint.open(path)).params()["head/kernel"], load(checkpoint).params()["head/kernel"] + 0.01, rtol=1e-6
    )


def test_without_a_bias():
    assert "head/bias" not in load(with_head("stella", bias=False)).params()


CASES: list[tuple[str, dict[str, Any]]] = [
    ("stella", {"dim": 48, "pooling": "cls"}),
    ("stella", {"activation": "tanh", "bias": False}),
    ("stella-finetuned-st6", {"dim": 64}),
    ("gte-base-en", {"pooling": "mean"}),
]
MORE_CASES: list[tuple[str, dict[str, Any]]] = [
    ("stella", {}),
    ("stella-finetuned-st6", {"pooling": "cls"}),
    ("arctic-m-v2", {"activation": "tanh"}),
    ("gte-qwen2", {"dim": 16}),
    ("gte-qwen2", {"pooling": "mean"}),
]


@pytest.mark.parametrize(("name", "keys"), CASES + MORE_CASES)
def test_a_saved_new_head_is_loaded(saved, name, keys):
    checkpoint = with_head(name, **keys)
    path = saved(checkpoint)
    again = Checkpoint.open(path)
    assert again.spec.pooling == checkpoint.spec.pooling
    assert again.spec.head(None) == checkpoint.spec.head(None)
    expected = load(checkpoint).params()
    for key, leaf in load(again).params().items():
        np.testing.assert_array_equal(leaf, expected[key] + 0.01 if key.startswith("head/") else expected[key])
    assert Stella.from_pretrained(path).dim == keys.get("dim", 96)


@pytest.mark.parametrize("moved", ["encoder/layers/mlp", "nothing"])
def test_an_untrained_new_head_is_saved_as_initialized(saved, moved):
    checkpoint = with_head("stella")
    found = load(Checkpoint.open(saved(checkpoint, moved))).params()["head/kernel"]
    np.testing.assert_array_equal(found, load(checkpoint).params()["head/kernel"])


@pytest.mark.parametrize("name", ["stella", "stella-finetuned-st6"])
def test_a_pooling_keeps_its_schema(saved, name):
    before = json.loads((GOLDENS / name / "1_Pooling/config.json").read_bytes())
    after = json.loads((saved(with_head(name, pooling="cls")) / "1_Pooling/config.json").read_bytes())
    assert before.keys() == after.keys()
    changed = {key: value for key, value in after.items() if value != before[key]}
    if name == "stella":
        assert changed == {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    else:
        assert changed == {"pooling_mode": "cls"}


def test_an_unchanged_pooling_keeps_its_bytes(saved):
    path = saved(with_head("stella"), native=False)
    assert (path / "1_Pooling/config.json").read_bytes() == (GOLDENS / "stella/1_Pooling/config.json").read_bytes()


@pytest.mark.torch
@pytest.mark.usefixtures("two_buckets")
@pytest.mark.parametrize(
    ("name", "keys"), [*CASES, *(pytest.param(*case, marks=pytest.mark.nightly) for case in MORE_CASES)]
)
def test_sentence_transformers_gives_the_same_vectors(saved, name, keys):
    from sentence_transformers import SentenceTransformer

    path = saved(with_head(name, **keys))
    ours = Stella.from_pretrained(path, dtype="float32").encode(TEXTS)
    theirs = SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
