"""The exported model: which bits it keeps, what it says of itself, who can load it."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import GOLDENS
from safetensors.numpy import load_file
from train.params import load

from stella_jax import Stella
from stella_jax.checkpoint import Checkpoint
from stella_jax.sharding import make_mesh
from train import curves
from train.card import Origin
from train.data import dataset_of
from train.export import PROVENANCE, Trained, export, is_exported
from train.identity import identity
from train.metrics import Metrics
from train.recipe import recipe_of

TEXTS = ["what is tea?", "A drink made of leaves, and a rather long sentence about it.", "x"]
ROWS = dataset_of([("a", "p", "n"), ("b", "q", "m")], "rows.jsonl")
SCORES = {"loss": 4.0, "cosine_accuracy": 0.5, "cosine_mrr@10": 0.25}


def origin_of(model: str, step: int = 2, **more) -> Origin:
    recipe = recipe_of({"model": model, "output": "out", "data": {"train": "t", "eval": "e"}, **more})
    data = {"train": ROWS, "eval": ROWS}
    return Origin(recipe, identity(recipe, data, {"encoder": "e" * 64, "heads": {"64": "h" * 64}}), data, step)


@pytest.fixture
def metrics(tmp_path: Path):
    (tmp_path / "run").mkdir()
    with Metrics(tmp_path / "run", 0) as metrics:
        metrics.write({"step": 0, "epoch": 0.0, "eval": SCORES})
        for step in (1, 2):
            metrics.write({"step": step, "epoch": step / 2, "loss": 3.0 + step})
        metrics.write({"step": 2, "epoch": 1.0, "eval": SCORES | {"cosine_accuracy": 0.75}})
        yield metrics


@pytest.fixture
def exported(tmp_path: Path, metrics: Metrics) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    """Exports a golden whose named parameters have been moved; returns the directory and the moved parameters."""

    def exported(name: str, moved: str = "", dim: int | None = None, **more) -> tuple[Path, dict[str, np.ndarray]]:
        base = Checkpoint.open(GOLDENS / name)
        network, params = load(base, make_mesh(), dim)
        rng = np.random.default_rng(0)
        trained = {n: np.asarray(p) for n, p in params.items() if n.startswith(moved)}
        trained = {n: p + rng.normal(0, 0.02, p.shape).astype(np.float32) for n, p in trained.items()}
        arrays = {n: jax.device_put(p) for n, p in trained.items()}
        export(
            Trained(base, network.head, arrays), origin_of(str(GOLDENS / name), **more), metrics, tmp_path / "export"
        )
        return tmp_path / "export", trained

    return exported


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_all_of_it_loads_in_jax_with_what_was_trained(exported):
    path, trained = exported("stella")
    found = load(Checkpoint.open(path), make_mesh())[1]
    assert found.keys() == trained.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, trained[name])
    assert Stella.from_pretrained(path).encode(TEXTS).shape == (3, 64)


def test_what_was_frozen_keeps_its_bits(exported):
    path, trained = exported("stella", moved="head/", dim=48)
    before, after = tensors(GOLDENS / "stella"), tensors(path)
    assert after.keys() == {name.removeprefix("new.") for name in before}
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name.removeprefix("new.")], tensor)
    for head in ("2_Dense_32", "2_Dense_64", "2_Dense_128"):
        for name, tensor in tensors(GOLDENS / "stella" / head).items():
            np.testing.assert_array_equal(tensors(path / head)[name], tensor)
    np.testing.assert_array_equal(tensors(path / "2_Dense_48")["linear.weight"], trained["head/kernel"].T)
    assert Stella.from_pretrained(path).dim == 48


def test_half_precision_that_was_frozen_stays_half(exported):
    path, _ = exported("gte-multilingual", moved="encoder/layers/mlp")
    found = tensors(path)
    assert found["embeddings.word_embeddings.weight"].dtype == np.float16
    assert found["encoder.layer.0.mlp.down_proj.weight"].dtype == np.float32
    assert "classifier.weight" in found
    assert json.loads((path / "config.json").read_text())["dtype"] == "float32"


def test_the_card_says_what_it_is(exported, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "draw", lambda metrics, path: drawn.append(path) or True)
    path, _ = exported(
        "stella",
        dim=48,
        loss={"matryoshka_dims": [48, 32]},
        data={"train": "t", "eval": "e", "prompts": {"anchor": "s2p_query"}},
    )
    text = (path / "README.md").read_text()
    assert (
        "trained for 2 steps with the triplet loss (euclidean, margin 5, summed over the first 48 and 32 numbers)"
        in text
    )
    assert "`2_Dense_48` is the head that was trained" in text
    assert "`2_Dense_32`, `2_Dense_64` and `2_Dense_128` belong to the encoder as it was before" in text
    assert "| cosine_accuracy | 0.5000 | 0.7500 |" in text
    assert f"| train | 2 | anchor, positive, negative | `{ROWS.sha256[:12]}` |" in text
    assert "| 1.00 | 2 | 4.5000 | 4.0000 | 0.7500 | 0.2500 |" in text
    assert "| sha256 of the base's encoder | `" + "e" * 64 in text
    assert 'Prompts in training, by their name or text: anchor: "s2p_query".' in text
    assert "](curves.png)" in text and drawn
    assert "matryoshka_dims = [48, 32]" in text
    assert "base_model" not in text


def test_only_a_head_that_was_trained_alone_leaves_the_others_as_good(exported):
    path, _ = exported("stella", moved="head/")
    assert "belong" not in (path / "README.md").read_text()


def test_it_is_known_by_its_origin(exported):
    path, _ = exported("stella")
    origin = origin_of(str(GOLDENS / "stella"))
    assert is_exported(path, origin)
    assert not is_exported(path, origin_of(str(GOLDENS / "stella"), step=3))
    assert not is_exported(path, origin_of(str(GOLDENS / "stella"), seed=1))
    (path / PROVENANCE).write_text("{")
    assert not is_exported(path, origin)


def test_it_takes_the_place_of_an_older_one(exported, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export/old").touch()
    (tmp_path / ".export.partial").mkdir()
    path, _ = exported("stella")
    assert not (path / "old").exists()
    assert [p.name for p in tmp_path.iterdir() if "export" in p.name] == ["export"]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "moved", "dim"),
    [
        ("stella", "", 32),
        ("stella-finetuned-st6", "", None),
        ("gte-base-en", "", None),
        ("gte-multilingual", "encoder/layers/mlp", None),
        ("arctic-m-v2", "", None),
    ],
)
def test_sentence_transformers_gives_the_same_embeddings(exported, name, moved, dim):
    from sentence_transformers import SentenceTransformer

    path, _ = exported(name, moved, dim)
    ours = Stella.from_pretrained(path, dtype="float32").encode(TEXTS)
    theirs = SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    if dim:
        assert theirs.shape == (3, dim)
