"""Attention and rotation on TPU equal those of other platforms; kernels run in Pallas' interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from marks import nightly

from stella_jax.checkpoint.config import Rope
from stella_jax.models.attention import (
    attend_at_once,
    attend_by_head,
    attend_flash,
    attend_on_tpu,
    rope_tables,
    rotate,
    rotate_by_halves,
    rotate_by_matmul,
)


def peaked(tokens: int) -> list[jax.Array]:
    """q, k, v for which one key too many or too few matters, and lengths of a full and a short row."""
    rng = np.random.default_rng(tokens)
    heads = [jnp.asarray(scale * rng.standard_normal((2, tokens, 2, 64), dtype=np.float32)) for scale in (3, 3, 1)]
    return [*heads, jnp.array([tokens, max(1, tokens // 3)], jnp.int32)]


@pytest.mark.parametrize("tokens", [8, 128, 300, *nightly(*(48, 640))])
def test_flash_attention(tokens: int) -> None:
    q, k, v, lengths = peaked(tokens)
    with pltpu.force_tpu_interpret_mode():
        found = jax.jit(attend_flash)(q, k, v, lengths)
    assert found.dtype == q.dtype
    np.testing.assert_allclose(found, attend_by_head(q, k, v, lengths), atol=2e-5, rtol=0)


def test_rows_of_one_step_are_independent() -> None:
    rows = [peaked(tokens)[:3] for tokens in (130, 130, 130)]
    q, k, v = (jnp.concatenate([row[i] for row in rows]) for i in range(3))
    lengths = jnp.array([130, 1, 60, 129, 128, 7], jnp.int32)
    with pltpu.force_tpu_interpret_mode():
        together = jax.jit(attend_flash)(q, k, v, lengths)  # 256 tokens after padding: three rows per step
        single = jax.jit(attend_flash)(q[2:3], k[2:3], v[2:3], lengths[2:3])
    np.testing.assert_array_equal(together[2:3], single)


@pytest.mark.parametrize("tokens", [1, 8, 120])
def test_short_texts_do_not_use_the_kernel(tokens: int) -> None:
    q, k, v, lengths = peaked(tokens)
    found = attend_on_tpu(q, k, v, lengths)  # a kernel would not run here
    np.testing.assert_allclose(found, attend_by_head(q, k, v, lengths), atol=2e-5, rtol=0)


def test_padding_and_neighbors_change_no_bit() -> None:
    q, k, v, lengths = peaked(24)
    found = attend_at_once(q, k, v, lengths)
    real = jnp.arange(24)[None, :, None, None] < lengths[:, None, None, None]
    poisoned = attend_at_once(q, jnp.where(real, k, 1e30), jnp.where(real, v, -1e30), lengths)
    np.testing.assert_array_equal(poisoned, found)
    swapped = attend_at_once(q[::-1], k[::-1], v[::-1], lengths[::-1])
    np.testing.assert_array_equal(swapped[::-1], found)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotation_by_matmul(dtype: jnp.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 40, 3, 64), dtype=np.float32)).astype(dtype)
    tables = rope_tables(Rope(320000.0), 40, 64)
    expected = rotate(x, *tables)
    monkeypatch.setattr("stella_jax.models.attention.platform", lambda: "tpu")
    found = rotate(x, *tables)
    assert found.dtype == dtype
    # The same products and sums; a fused multiply-add may keep one more bit, which bfloat16 rounds either way.
    rounding = 1e-6 if dtype == jnp.float32 else 2**-6
    np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=rounding, rtol=0)


def test_matrix_unit_swaps_exactly() -> None:
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 5, 2, 64), dtype=np.float32))
    zeros, ones = jnp.zeros((1, 5, 1, 32)), jnp.ones((1, 5, 1, 32))
    found = rotate_by_matmul(x, zeros, ones)  # by 90 degrees
    np.testing.assert_array_equal(found, rotate_by_halves(x, zeros, ones))
    np.testing.assert_array_equal(found, np.concatenate([-x[..., 32:], x[..., :32]], axis=-1))
