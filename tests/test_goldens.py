"""Every golden checkpoint, stage by stage, against the PyTorch reference in float64."""

import json
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import abstract_encoder
from flax import nnx
from paths import GOLDENS
from safetensors.numpy import load_file

from stella_jax import Stella
from stella_jax.models.heads import normalize, pool

NEW = ("stella", "stella-finetuned-st6", "gte-base-en", "gte-large-en", "gte-multilingual", "arctic-m-v2")
QWEN2 = ("stella-qwen2", "gte-qwen2")
FAMILY = (*NEW, *QWEN2)
FLOAT32 = 1e-4  # absolute, at every stage; PyTorch's own float32 is up to 6.6e-5 away
BFLOAT16 = 0.999  # cosine


@dataclass(frozen=True)
class Golden:
    texts: list[str]
    arrays: dict[str, np.ndarray]

    @property
    def prompt_names(self) -> list[str | None]:
        """None and the prompts' names, as `encode` takes them."""
        names = sorted({key.split("/")[0] for key in self.arrays})
        return [None if name == "none" else name for name in names]

    def __getitem__(self, key: tuple[str | None, str]) -> np.ndarray:
        prompt_name, array = key
        return self.arrays[f"{prompt_name or 'none'}/{array}"]

    def heads(self, prompt_name: str | None) -> list[int]:
        """The dimensions of the heads with stored embeddings."""
        start = f"{prompt_name or 'none'}/embedding."
        return sorted(int(key.removeprefix(start)) for key in self.arrays if key.startswith(start))


@cache
def golden(name: str) -> Golden:
    texts = json.loads((GOLDENS / name / "expected_texts.json").read_text())["texts"]
    return Golden(texts, load_file(GOLDENS / name / "expected.safetensors"))


@cache
def model(name: str, dtype: str = "float32", dim: int | None = None) -> Stella:
    return Stella.from_pretrained(GOLDENS / name, dim=dim, dtype=dtype)


@cache
def hidden_states(name: str, prompt_name: str | None, dtype: str) -> tuple[jax.Array, jax.Array]:
    """The states after the embeddings, each layer and the last norm (L+2, B, T, D), and lengths, of a golden's ids."""
    expected = golden(name)
    ids = jnp.asarray(expected[prompt_name, "input_ids"])
    lengths = jnp.asarray(expected[prompt_name, "attention_mask"].sum(axis=1))
    stella = model(name, dtype)
    return _states(*nnx.split(stella.model.encoder), ids, lengths), lengths


@partial(jax.jit, static_argnames="graphdef")
def _states(graphdef: nnx.GraphDef, state: nnx.State, ids: jax.Array, lengths: jax.Array) -> jax.Array:
    encoder = nnx.merge(graphdef, state)
    last, each = encoder(ids, lengths)
    return jnp.concatenate([encoder.embeddings(ids)[None], each, last[None]])


def cases(prompt_names=lambda name: golden(name).prompt_names) -> list:
    return [pytest.param(name, prompt, id=f"{name}-{prompt}") for name in FAMILY for prompt in prompt_names(name)]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def pooling(name: str):
    return model(name).checkpoint.spec.pooling


@pytest.mark.parametrize(("name", "prompt_name"), cases())
def test_token_ids_and_masks_equal_the_reference(name, prompt_name):
    expected = golden(name)
    ids, mask = expected[prompt_name, "input_ids"], expected[prompt_name, "attention_mask"]
    stella = model(name)
    tokens = stella.tokenize(expected.texts, stella.resolve_prompt(prompt_name))
    assert [t.ids for t in tokens] == [row[:length].tolist() for row, length in zip(ids, mask.sum(axis=1), strict=True)]
    assert (np.sort(mask, axis=1)[:, ::-1] == mask).all()
    assert (ids[mask == 0] == stella.config.pad_token_id).all()


@pytest.mark.parametrize("name", FAMILY)
def test_text_that_fills_its_length_is_truncated(name):
    stella, expected = model(name), golden(name)
    tokens = stella.tokenize(expected.texts)
    assert [t.truncated for t in tokens] == [len(t.ids) == stella.max_seq_length for t in tokens]
    assert any(t.truncated for t in tokens)


@pytest.mark.parametrize("name", FAMILY)
def test_every_hidden_state(name):
    expected = golden(name)
    states, lengths = hidden_states(name, None, "float32")
    mask = np.arange(states.shape[2]) < np.asarray(lengths)[:, None]
    stages = [f"hidden_states.{i}" for i in range(model(name).config.num_hidden_layers + 1)]
    stages += ["final_norm"] if name in QWEN2 else []
    for stage, state in zip(stages, np.asarray(states), strict=name in QWEN2):
        np.testing.assert_allclose(state[mask], expected[None, stage][mask], rtol=0, atol=FLOAT32, err_msg=stage)


@pytest.mark.parametrize(("name", "prompt_name"), cases())
def test_pooled_vectors(name, prompt_name):
    states, lengths = hidden_states(name, prompt_name, "float32")
    pooled = pool(states[-1], lengths, pooling(name))
    np.testing.assert_allclose(pooled, golden(name)[prompt_name, "pooled"], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(
    ("name", "prompt_name"),
    [case for case in cases() if f"{case.values[1] or 'none'}/normalized" in golden(case.values[0]).arrays],
)
def test_normalized_vectors(name, prompt_name):
    states, lengths = hidden_states(name, prompt_name, "float32")
    normalized = normalize(pool(states[-1], lengths, pooling(name)))
    np.testing.assert_allclose(normalized, golden(name)[prompt_name, "normalized"], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(("name", "prompt_name"), cases())
def test_every_head(name, prompt_name):
    expected = golden(name)
    assert expected.heads(prompt_name) == sorted(model(name).checkpoint.spec.heads)
    states, lengths = hidden_states(name, prompt_name, "float32")
    pooled = pool(states[-1], lengths, pooling(name))
    for dim in expected.heads(prompt_name):
        [head] = model(name, dim=dim).model.heads
        assert head
        embedding = head(pooled)
        np.testing.assert_allclose(embedding, expected[prompt_name, f"embedding.{dim}"], rtol=0, atol=FLOAT32)


def embeddings(name: str, prompt_name: str | None, dim: int | None) -> np.ndarray:
    """The expected result of `encode`."""
    expected = golden(name)
    if model(name).checkpoint.spec.normalize:
        pooled = expected[prompt_name, "pooled"]
        return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
    return expected[prompt_name, f"embedding.{dim}" if dim else "pooled"]


@pytest.mark.parametrize(("name", "dim"), [(name, None) for name in FAMILY] + [("stella", 128)])
def test_encode_from_text_to_embedding(name, dim, monkeypatch):
    # One bucket, so that one shape is compiled, not five; test_oracle.py tests the buckets.
    monkeypatch.setattr("stella_jax.batching.bucket_lengths", lambda longest: [longest])
    stella = model(name, dim=dim)
    for prompt_name in golden(name).prompt_names:
        found = stella.encode(golden(name).texts, prompt_name=prompt_name)
        expected = embeddings(name, prompt_name, dim or stella.checkpoint.spec.default_dim)
        np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32)


def rounded(state: nnx.State) -> nnx.State:
    """The parameters rounded to bfloat16, as float32; those of norms are not rounded."""
    return jax.tree.map_with_path(
        lambda path, x: x if "norm" in jax.tree_util.keystr(path) else x.astype(jnp.bfloat16).astype(jnp.float32), state
    )


def exact_on_rounded_weights(name: str, prompt_name: str | None) -> np.ndarray:
    """Pooled vectors of the bfloat16 weights, computed in float32: the loss from rounding the weights alone."""
    expected, stella = golden(name), model(name)
    lengths = expected[prompt_name, "attention_mask"].sum(axis=1)
    graphdef, state = nnx.split(stella.model.encoder)
    states = _states(graphdef, rounded(state), expected[prompt_name, "input_ids"], lengths)
    return np.asarray(pool(states[-1], lengths, pooling(name)))


@pytest.mark.parametrize(("name", "prompt_name"), cases())
def test_bfloat16(name, prompt_name):
    expected = golden(name)
    reference = expected[prompt_name, "pooled"]
    states, lengths = hidden_states(name, prompt_name, "bfloat16")
    pooled = pool(states[-1], lengths, pooling(name))
    assert pooled.dtype == jnp.float32

    bound = BFLOAT16
    if name == "gte-base-en":  # peaked attention: rounding the weights alone exceeds the tolerance
        inherent = cosines(exact_on_rounded_weights(name, prompt_name), reference).min()
        assert inherent < BFLOAT16
        bound = 1 - 2 * (1 - inherent)
    assert cosines(np.asarray(pooled), reference).min() >= bound
    for dim in expected.heads(prompt_name):
        [head] = model(name, "bfloat16", dim).model.heads
        assert head
        embedding = head(pooled)
        assert cosines(np.asarray(embedding), expected[prompt_name, f"embedding.{dim}"]).min() >= bound


def test_tolerance_detects_a_wrong_rotation():
    """The goldens are sensitive: half a percent in the rope's base is far outside the tolerance."""
    stella, expected = model("stella"), golden("stella")
    wrong = replace(stella.config, rope=replace(stella.config.rope, theta=stella.config.rope.theta * 1.005))
    graphdef, _ = abstract_encoder(wrong, jnp.float32)
    state = nnx.state(stella.model.encoder)
    mask = expected[None, "attention_mask"]
    states = _states(graphdef, state, expected[None, "input_ids"], mask.sum(axis=1))
    assert np.abs(np.asarray(states[-1]) - expected[None, "hidden_states.3"])[mask == 1].max() > 10 * FLOAT32
