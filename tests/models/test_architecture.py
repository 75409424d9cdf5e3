"""An architecture in one file (toy_architecture.py) loads, embeds, converts, runs in jobs and trains."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_files import write_json, write_layout
from jobs import write_corpus
from marks import nightly
from safetensors.numpy import load_file, save_file
from toy_architecture import TOY, ToyConfig

import stella_jax.models as models
from convert.__main__ import main
from stella_jax import Stella, load
from stella_jax.checkpoint.config import Rope
from stella_jax.checkpoint.hub import TINY
from stella_jax.graceful_shutdown import GracefulShutdown
from stella_jax.job.options import JobOptions, RunOptions
from stella_jax.job.run import run_job
from stella_jax.lora import merge_lora, with_lora
from train import loop
from train.recipe import recipe_of

CONFIG = ToyConfig(
    vocab_size=16384,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
    pad_token_id=0,
    layer_norm_eps=1e-5,
    rope=Rope(10000.0),
)
TEXTS = ["a", "What are some ways to reduce stress?", "", "green tea " * 20]
LAYER = "encoder/layers/mixer/qkv/1/kernel"


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_architectures", [*models.architectures()])
    models.register(TOY)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint."""
    path, rng, sizes = tmp_path_factory.mktemp("toy") / "toy", np.random.default_rng(0), TOY.sizes(CONFIG)
    tensors: dict[str, np.ndarray] = {}
    for weight in TOY.weights:
        for i in range(CONFIG.num_hidden_layers if weight.stacked else 1):
            shape = weight.torch_shape(sizes)
            scale = 1 if len(shape) == 1 or weight.torch == "tokens.weight" else shape[1] ** -0.5
            tensors[weight.torch.format(i=i)] = rng.standard_normal(shape, np.float32) * np.float32(scale)
    shutil.copytree(TINY, path, ignore=shutil.ignore_patterns("*.safetensors", "2_Dense_*"))
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    write_json(path / "config.json", CONFIG.native_json())
    write_layout(path, CONFIG.hidden_size, "mean", max_length=32)
    return path


def test_weights_follow_the_table(toy: Path) -> None:
    found, tensor = load(toy).params()[LAYER], load_file(toy / "model.safetensors")["blocks.1.wk"]
    np.testing.assert_array_equal(np.asarray(found[1]).reshape(16, 16), tensor.T)


def test_norms_stay_in_float32(toy: Path) -> None:
    dtypes = {name: leaf.dtype for name, leaf in load(toy, param_dtype="bfloat16").params().items()}
    assert {name for name, dtype in dtypes.items() if dtype == jnp.float32} == {
        name for name in dtypes if name.endswith("scale")
    }


@pytest.mark.usefixtures("two_buckets")
@pytest.mark.parametrize("dtype", ["float32", *nightly("bfloat16")])
def test_mesh_gives_the_same_vectors(toy: Path, dtype: str) -> None:
    one = Stella.from_pretrained(toy, dtype=dtype).encode(TEXTS)
    many = Stella.from_pretrained(toy, dtype=dtype, mesh="data=2,model=2").encode(TEXTS)
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-5 if dtype == "float32" else 0.1)


def test_mesh_that_does_not_divide_the_heads(toy: Path, refused) -> None:
    with refused("model=4", "num_attention_heads 2"):
        load(toy, mesh="model=4")


def test_conversion_round_trip(toy: Path, tmp_path: Path) -> None:
    assert main([str(toy), str(tmp_path / "flax"), "--verify"]) == 0
    assert main([str(tmp_path / "flax"), str(tmp_path / "torch"), "--to", "torch", "--verify"]) == 0
    before, after = (
        {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        for path in (toy, tmp_path / "torch")
    )
    assert after == before


def test_job(toy: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    model = Stella.from_pretrained(toy)
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    run_job(model, {"model": str(toy), "revision": None}, [corpus], tmp_path / "out", JobOptions(), RunOptions())
    found = np.stack(pq.read_table(tmp_path / "out")["embedding"].to_pylist())
    np.testing.assert_array_equal(found, model.encode(TEXTS))


@pytest.mark.parametrize("lora", [False, *nightly(True)])
def test_training_ends_in_an_export(toy: Path, tmp_path: Path, lora: bool) -> None:
    rows = [{"anchor": f"a {word}", "positive": f"one {word}", "negative": f"no {word}"} for word in ("fog", "owl")] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": str(toy),
        "output": str(tmp_path / "run"),
        "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 8, "batch_sampler": "sequential"},
        "loss": {},
        "optimizer": {"learning_rate": 1e-2},
        "loop": {"batch_size": 4, "epochs": 1},
        **({"lora": {"rank": 2}} if lora else {}),
    }
    loop.train(recipe_of(recipe), GracefulShutdown(float("inf")))
    before, after = load(toy).params(), load(tmp_path / "run/export").params()
    assert after.keys() == before.keys()
    moved = {name for name, leaf in after.items() if (np.asarray(leaf) != np.asarray(before[name])).any()}
    linears = {linear.kernel for linear in TOY.linears.values()}
    assert moved == (linears if lora else {*before})


def test_merged_adapters_give_the_same_vectors(toy: Path) -> None:
    model, rng = with_lora(load(toy), rank=2), np.random.default_rng(1)
    b = {name: model.params()[name] for name in model.trainable if name.endswith("lora_b")}
    model = model.with_params(
        {name: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype) for name, leaf in b.items()}
    )
    ids, lengths = jnp.asarray(rng.integers(5, 2000, (2, 8)), jnp.int32), jnp.array([8, 3], jnp.int32)
    found = jax.jit(model)(ids, lengths)
    np.testing.assert_allclose(jax.jit(merge_lora(model))(ids, lengths), found, atol=1e-5)
    assert np.abs(np.asarray(found - jax.jit(load(toy))(ids, lengths))).max() > 1e-3
