"""`attend` and the rotation against formulas in float64, and their memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stella_jax.checkpoint.config import Rope
from stella_jax.models.attention import QUERY_CHUNK, attend, rope_tables, rotate


def plain_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(H)) v over the real keys, row by row and head by head, in float64."""
    out = np.zeros(q.shape)
    for b, length in enumerate(lengths):
        for n in range(q.shape[2]):
            scores = q[b, :, n].astype(np.float64) @ k[b, :length, n].T / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[b, :, n] = weights / weights.sum(axis=-1, keepdims=True) @ v[b, :length, n]
    return out


def heads(shape: tuple[int, ...], seed: int = 0, scale: float = 3.0) -> np.ndarray:
    """q, k and v; at this scale scores reach hundreds, and attention is almost one-hot."""
    return np.random.default_rng(seed).standard_normal((3, *shape), dtype=np.float32) * scale


@settings(max_examples=8)
@example(rows=2, tokens=QUERY_CHUNK + 128, num_heads=1, head_dim=4, seed=0, scale=3.0)  # two blocks or more
@example(rows=1, tokens=1, num_heads=1, head_dim=2, seed=0, scale=100.0)
@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 24),
    num_heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6, 64]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.1, 1.0, 3.0, 100.0]),
)
def test_attend_is_masked_softmax(rows, tokens, num_heads, head_dim, seed, scale):
    q, k, v = heads((rows, tokens, num_heads, head_dim), seed, scale)
    lengths = np.random.default_rng(seed).integers(1, tokens + 1, rows)
    found = np.asarray(attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(lengths)))
    # Float32 scores of this size are exact except for a few last bits, and so are the weights.
    error = 1e-5 * max(1.0, scale**2 * np.sqrt(head_dim) / 10)
    np.testing.assert_allclose(found / scale, plain_attention(q, k, v, lengths) / scale, rtol=0, atol=error)


def test_padding_changes_no_bit():
    q, k, v = heads((1, 16, 2, 8))
    lengths = jnp.array([5])
    found = attend(q, k, v, lengths)
    for poison in (0.0, 1e30, -1e30):
        k[:, 5:], v[:, 5:] = poison, poison
        np.testing.assert_array_equal(attend(q, k, v, lengths), found)


def test_bfloat16_keeps_its_dtype_and_a_float32_softmax():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in heads((1, 32, 2, 16), scale=1.0))
    found = attend(q, k, v, jnp.array([32]))
    assert found.dtype == jnp.bfloat16
    as_float32 = [np.asarray(x, np.float32) for x in (q, k, v)]
    exact = plain_attention(as_float32[0], as_float32[1], as_float32[2], np.array([32]))
    np.testing.assert_allclose(np.asarray(found, np.float32), exact, rtol=0, atol=0.02)


def array_sizes(jaxpr) -> list[int]:
    """Number of elements of every array in a jaxpr, including nested ones."""
    sizes = [int(np.prod(v.aval.shape)) for equation in jaxpr.eqns for v in equation.outvars]
    inner = [p for equation in jaxpr.eqns for p in jax.tree.leaves(equation.params) if hasattr(p, "jaxpr")]
    return sizes + [size for closed in inner for size in array_sizes(closed.jaxpr)]


def test_long_texts_never_hold_all_scores():
    """8192 tokens, 16 heads: a score of each pair would be 4 GiB; one block of one head is 16 MiB."""
    B, T, N, H = shape = (1, 8192, 16, 64)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    lengths = jax.ShapeDtypeStruct((B,), jnp.int32)
    assert max(array_sizes(jax.make_jaxpr(attend)(x, x, x, lengths).jaxpr)) == B * T * N * H
    memory: Any = jax.jit(attend).lower(x, x, x, lengths).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 4 * B * T * N * H  # a few copies of q


@pytest.mark.parametrize("tokens", [72, 304, 512])
def test_short_texts_are_scored_in_one_block(tokens):
    """Blocks of fewer queries are several times slower."""
    x = jax.ShapeDtypeStruct((1, tokens, 2, 64), jnp.float32)
    jaxpr = jax.make_jaxpr(attend)(x, x, x, jax.ShapeDtypeStruct((1,), jnp.int32))
    assert tokens * tokens in array_sizes(jaxpr.jaxpr)


def test_rotation_angle_is_position_times_frequency():
    rope, head_dim = Rope(theta=10_000.0, divisor=1.5), 8
    x = np.random.default_rng(0).standard_normal((2, 5, 3, head_dim), dtype=np.float32)
    found = np.asarray(rotate(jnp.asarray(x), *rope_tables(rope, 5, head_dim)))
    for position in range(5):
        for j in range(4):
            turn = np.exp(1j * position / (rope.theta ** (2 * j / head_dim) * rope.divisor))
            turned = (x[:, position, :, j] + 1j * x[:, position, :, j + 4]) * turn
            np.testing.assert_allclose(found[:, position, :, j], turned.real, atol=1e-6)
            np.testing.assert_allclose(found[:, position, :, j + 4], turned.imag, atol=1e-6)


def test_rotation_keeps_the_dtype_and_the_first_position():
    x = jnp.asarray(heads((1, 3, 2, 4))[0], jnp.bfloat16)
    rotated = rotate(x, *rope_tables(Rope(10_000.0), 3, 4))
    assert rotated.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])
