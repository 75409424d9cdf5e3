"""The TPU's attention in the interpreter of Pallas: the same function as plain XLA's, whatever the length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from stella_jax.attention import attend_by_head, attend_flash


@pytest.mark.parametrize("tokens", [8, 48, 128, 640])
def test_flash_is_attention(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    # Peaked: with these scores a key too many or too few shows.
    q, k, v = (jnp.asarray(scale * rng.standard_normal((2, tokens, 2, 64), dtype=np.float32)) for scale in (3, 3, 1))
    lengths = jnp.array([tokens, max(1, tokens // 3)], jnp.int32)
    with pltpu.force_tpu_interpret_mode():
        found = jax.jit(attend_flash)(q, k, v, lengths)
    assert found.dtype == q.dtype
    np.testing.assert_allclose(found, attend_by_head(q, k, v, lengths), atol=2e-5, rtol=0)
