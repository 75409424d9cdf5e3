"""Inference over a mesh of eight simulated devices: the numbers of one device, and no unnecessary collective."""

import re
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from marks import nightly
from paths import GOLDENS

from stella_jax import Stella
from stella_jax.runner import last_hidden
from stella_jax.sharding import BATCH_SPEC, make_mesh, shard

TEXTS = ["a", "green tea " * 30, "what is this about? " * 3, "", "rows that eight does not divide"] * 3
pytestmark = pytest.mark.usefixtures("two_buckets")

COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def test_there_are_eight_devices() -> None:
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(("mesh", "dtype"), [("data=8", "float32"), ("data=3", "bfloat16")])
def test_data_parallelism_keeps_the_bits(mesh: str, dtype: str) -> None:
    ours = Stella.from_pretrained(GOLDENS / "stella", mesh=mesh, dtype=dtype)
    single = Stella.from_pretrained(GOLDENS / "stella", dtype=dtype)
    assert np.array_equal(ours.encode(TEXTS), single.encode(TEXTS))


@pytest.mark.parametrize("mesh", ["data=4,model=2", *nightly("data=2,model=4"), "model=4"])
def test_tensor_parallelism(mesh: str, stella: Stella) -> None:
    ours = Stella.from_pretrained(GOLDENS / "stella", mesh=mesh)
    np.testing.assert_allclose(ours.encode(TEXTS), stella.encode(TEXTS), atol=1e-5, rtol=0)


def test_one_attention_head_per_device() -> None:
    ours = Stella.from_pretrained(GOLDENS / "gte-base-en", mesh="model=3")
    single = Stella.from_pretrained(GOLDENS / "gte-base-en")
    # gte-base-en has larger numbers than the others: its float32 is 2e-5 from float64.
    np.testing.assert_allclose(ours.encode(TEXTS), single.encode(TEXTS), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("stella", "data=8"),
        ("stella", "data=4,model=2"),
        ("gte-qwen2", "data=4,model=2"),
        pytest.param("stella", "data=2,model=4", marks=pytest.mark.nightly),
        pytest.param("stella", "data=3", marks=pytest.mark.nightly),
        pytest.param("gte-qwen2", "data=8", marks=pytest.mark.nightly),
    ],
)
def test_collectives(name: str, mesh: str) -> None:
    """None over `data`; over `model` the sums after attention and MLP, inside the loop over layers."""
    model = Stella.from_pretrained(GOLDENS / name, mesh=mesh)
    rows = 2 * model.mesh.shape["data"]
    ids = shard(model.mesh, np.ones((rows, 64), np.int32), BATCH_SPEC)
    lengths = shard(model.mesh, np.full(rows, 9, np.int32), BATCH_SPEC)
    with jax.set_mesh(model.mesh):
        program = last_hidden.lower(model.runner.graphdef, model.runner.state, ids, lengths).compile()
    found = Counter(COLLECTIVE.findall(program.as_text() or ""))
    assert found == ({} if model.mesh.shape["model"] == 1 else {"all-reduce": 2})


def test_each_device_holds_only_its_slice() -> None:
    model = Stella.from_pretrained(GOLDENS / "stella", mesh="data=2,model=4")
    kernel = model.model.encoder.layers.mlp.down.kernel[...]
    assert kernel.shape == (3, 128, 64)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 32, 64)}


@pytest.mark.parametrize(
    ("mesh", "named"),
    [
        ("model=8", "num_attention_heads 4"),
        ("model=3", "num_attention_heads 4 and intermediate_size 128"),
        ("data=16", "16 devices"),
        ("rows=2", "rows=2"),
        ("data=0", "data=0"),
        ("data", "'data'"),
    ],
)
def test_invalid_meshes(mesh: str, named: str, refused) -> None:
    with refused("mesh", named):
        Stella.from_pretrained(GOLDENS / "stella", mesh=mesh)


def test_mesh_with_other_axes(refused) -> None:
    mesh = Mesh(np.array(jax.devices()), ("batch",), axis_types=(AxisType.Auto,))
    with refused("batch"):
        Stella.from_pretrained(GOLDENS / "stella", mesh=mesh)


def test_mesh_object_and_text_are_equal() -> None:
    assert Stella.from_pretrained(GOLDENS / "stella", mesh=make_mesh("data=2")).mesh == make_mesh("data=2")
