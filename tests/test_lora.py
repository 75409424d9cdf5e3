"""Adapters: initial values, their effect, merging and saving."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import nightly
from paths import GOLDENS
from safetensors.numpy import load_file

from stella_jax import EmbeddingModel, load
from stella_jax.lora import merge_lora, merged_kernels, save_adapter, with_lora
from stella_jax.models.new import NEW
from stella_jax.runner import Runner
from stella_jax.sharding import make_mesh

LINEARS = NEW.linears
LAYERS, HIDDEN, INTERMEDIATE, RANK = 3, 64, 128, 4
IDS = jnp.asarray(np.random.default_rng(0).integers(5, 2000, (8, 16)), jnp.int32)
LENGTHS = jnp.array([16, 1, 9, 12, 3, 16, 2, 7], jnp.int32)


@pytest.fixture(scope="module")
def base() -> EmbeddingModel:
    return load(GOLDENS / "stella")


def moved(model: EmbeddingModel) -> EmbeddingModel:
    """With adapters that have an effect: B is not 0."""
    rng = np.random.default_rng(1)
    params = {name: model.params()[name] for name in model.trainable if name.endswith("lora_b")}
    return model.with_params({name: jnp.asarray(rng.normal(0, 0.1, b.shape), b.dtype) for name, b in params.items()})


def vectors(model: EmbeddingModel) -> np.ndarray:
    return np.asarray(jax.jit(lambda model: model(IDS, LENGTHS))(model))


def test_new_adapters_are_like_pefts_and_change_nothing(base) -> None:
    model = with_lora(base, RANK, seed=3)
    shapes = {"q_proj": (HIDDEN, HIDDEN), "gate_proj": (HIDDEN, INTERMEDIATE), "down_proj": (INTERMEDIATE, HIDDEN)}
    for name, (inputs, outputs) in shapes.items():
        a, b = (np.asarray(model.params()[f"{LINEARS[name].adapter(name)}/{leaf}"]) for leaf in ("lora_a", "lora_b"))
        assert a.shape == (LAYERS, inputs, RANK) and b.shape == (LAYERS, RANK, outputs) and not b.any()
        bound = inputs**-0.5  # kaiming_uniform_(a=sqrt(5))
        assert 0.9 * bound < np.abs(a).max() <= bound and abs(a.std() * 3**0.5 / bound - 1) < 0.1
    np.testing.assert_array_equal(vectors(model), vectors(base))
    again, other = (with_lora(base, RANK, seed=seed).params() for seed in (3, 4))
    assert all((again[name] == leaf).all() for name, leaf in model.params().items())
    assert any((other[name] != leaf).any() for name, leaf in model.params().items())


def test_base_model_is_unchanged_and_shares_its_arrays(base) -> None:
    before = base.params()
    model = with_lora(base, RANK)
    assert base.params().keys() == before.keys() and base.trainable == [*before]
    assert all(model.params()[name] is leaf for name, leaf in before.items())
    assert len(model.trainable) == 2 * len(LINEARS)


@pytest.mark.parametrize(
    "targets",
    ["all-linear", "k_proj", *nightly(*(name for name in LINEARS if name != "k_proj"))],
)
def test_merged_weights_give_the_same_vectors(base, targets: str) -> None:
    model = moved(with_lora(base, RANK, 8, targets=targets))
    merged, found = merge_lora(model), vectors(model)
    assert merged.params().keys() == base.params().keys()
    np.testing.assert_allclose(vectors(merged), found, atol=1e-5)
    assert np.abs(found - vectors(base)).max() > 1e-3


def test_adapter_is_added_to_its_own_map_only(base) -> None:
    """The sum in NumPy, at the map's place in the checkpoint."""
    params = moved(with_lora(base, RANK, 12, targets=["k_proj"])).params()
    a, b = (np.asarray(params[f"encoder/layers/attention/lora/k_proj/{leaf}"]) for leaf in ("lora_a", "lora_b"))
    kernel = np.array(params["encoder/layers/attention/qkv/kernel"])
    kernel[:, :, 1] += 3 * (a @ b).reshape(kernel[:, :, 1].shape)
    merged = merge_lora(moved(with_lora(base, RANK, 12, targets=["k_proj"]))).params()
    np.testing.assert_allclose(merged["encoder/layers/attention/qkv/kernel"], kernel, atol=1e-6)


def test_bfloat16_kernels_are_merged_in_float32() -> None:
    """Rounded once: the same as the kernel and adapters in float32, merged and then rounded."""
    model = moved(with_lora(load(GOLDENS / "stella", param_dtype="bfloat16"), RANK))
    params, config = model.params(), model.encoder.lora
    whole = merged_kernels({name: leaf.astype(jnp.float32) for name, leaf in params.items()}, config)
    found = merged_kernels(params, config)
    assert {*found} == {linear.kernel for linear in LINEARS.values()}
    for name, kernel in found.items():
        assert kernel.dtype == jnp.bfloat16
        np.testing.assert_array_equal(kernel, whole[name].astype(jnp.bfloat16))


@pytest.mark.parametrize("layer_by_layer", [True, False])
def test_embedding_with_adapters(base, layer_by_layer: bool) -> None:
    model = moved(with_lora(base, RANK))
    runner = Runner(model, make_mesh(), 0, layer_by_layer=layer_by_layer)
    np.testing.assert_allclose(runner.forward(IDS, LENGTHS)[0], vectors(model), atol=1e-5)


def test_bfloat16(base) -> None:
    model = moved(with_lora(load(GOLDENS / "stella", dtype="bfloat16"), RANK))
    expected = vectors(moved(with_lora(base, RANK)))
    cosines = np.sum(vectors(model) * expected, axis=1) / np.prod(
        [np.linalg.norm(x, axis=1) for x in (vectors(model), expected)], axis=0
    )
    assert cosines.min() > 0.999


def test_over_a_mesh(base) -> None:
    """Adapters are split like their maps."""
    model = with_lora(load(GOLDENS / "stella", mesh="data=4,model=2"), RANK)
    b = model.params()["encoder/layers/attention/lora/q_proj/lora_b"]
    assert b.addressable_shards[0].data.shape == (LAYERS, RANK, HIDDEN // 2)
    np.testing.assert_allclose(vectors(moved(model)), vectors(moved(with_lora(base, RANK))), atol=1e-5)


def test_saved_model_is_merged(base, tmp_path: Path) -> None:
    model = moved(with_lora(base, RANK, 8))
    model.save_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(vectors(load(tmp_path / "merged")), vectors(model), atol=1e-5)


def test_adapter_files_are_in_the_format_of_peft(base, tmp_path: Path, refused) -> None:
    model = moved(with_lora(base, RANK, 8, dropout=0.1, targets=("q_proj", "down_proj")))
    save_adapter(model, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    start = "base_model.model.layers"
    assert {*tensors} == {
        f"{start}.{layer}.{name}.lora_{side}.weight"
        for layer in range(LAYERS)
        for name in ("self_attn.q_proj", "mlp.down_proj")
        for side in "AB"
    }
    a = np.asarray(model.params()["encoder/layers/mlp/lora/down_proj/lora_a"])
    np.testing.assert_array_equal(tensors[f"{start}.2.mlp.down_proj.lora_A.weight"], a[2].T)
    fields: dict[str, Any] = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["lora_dropout"]) == (RANK, 8, 0.1)
    assert fields["target_modules"] == ["q_proj", "down_proj"]
    with refused("adapter"):
        save_adapter(model, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rank", 0),
        ("rank", True),
        ("rank", 2.0),
        ("rank", HIDDEN + 1),
        ("alpha", float("inf")),
        ("alpha", 0),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("targets", ()),
        ("targets", "qkv_proj"),
        ("targets", ["q_proj", 3]),
        ("targets", [["q_proj"]]),
        ("targets", 3),
    ],
)
def test_invalid_adapters(base, option: str, value: Any, refused) -> None:
    with refused(option) as caught:
        with_lora(base, **{option: value})
    assert str(caught.value).startswith(option)


def test_adapters_of_something_else(tmp_path: Path, refused) -> None:
    model: Any = "tiny"
    for call in (with_lora, merge_lora, partial(save_adapter, directory=tmp_path / "adapter")):
        with refused("model: ", "str"):
            call(model)


def test_saving_without_adapters_and_adding_them_twice(base, tmp_path: Path, refused) -> None:
    with refused("save_adapter"):
        save_adapter(base, tmp_path / "adapter")
    with refused("with_lora"):
        with_lora(with_lora(base, RANK), RANK)
    assert merge_lora(base) is base
