"""Building blocks of architectures: dropout, norms, attention with rotary positions, a gated MLP.

Axes: B batch, T tokens, D hidden, N heads, G heads of keys and values, H head_dim, F intermediate.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from stella_jax.checkpoint.config import Rope
from stella_jax.models.attention import attend, rope_tables, rotate
from stella_jax.sharding import platform

# The name of dropout masks for policies of `jax.checkpoint`: one byte per number, and slow to draw again.
DROPOUT_MASK = "dropout_mask"


@partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["rate"])
@dataclass(frozen=True, slots=True)
class Dropout:
    """Zeroes each number with probability `rate`, drawn from `key`, and scales up the others."""

    rate: float
    key: jax.Array

    def fold_in(self, data: int | jax.Array) -> "Dropout":
        """An independent dropout for each number, as `jax.random.fold_in`."""
        return Dropout(self.rate, jax.random.fold_in(self.key, data))

    def with_rate(self, rate: float) -> "Dropout":
        """The same key with another rate."""
        return Dropout(rate, self.key)

    def __call__(self, x: jax.Array) -> jax.Array:
        kept = checkpoint_name(jax.random.bernoulli(self.key, 1 - self.rate, x.shape), DROPOUT_MASK)
        return jnp.where(kept, x / (1 - self.rate), 0)


def dot(x: jax.Array, kernel: jax.Array, *dimensions: Any, **options: Any) -> jax.Array:
    """`jax.lax.dot_general`, rounded to x's dtype.

    In jax 0.10, XLA on CPU multiplies bfloat16 directly only if the product is float32; otherwise it converts the
    operands first, which takes twice the time.
    """
    if platform() == "cpu":
        options["preferred_element_type"] = jnp.float32
    return jax.lax.dot_general(x, kernel, *dimensions, **options).astype(x.dtype)


linear = partial(nnx.LinearGeneral, dot_general=dot)


def drop(x: jax.Array, dropout: Dropout | None, index: int = 0) -> jax.Array:
    return dropout.fold_in(index)(x) if dropout and dropout.rate else x


def layer_norm(size: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32 for any input dtype; the variance as published, not E[x^2] - E[x]^2.

    Its output, the residual stream, stays float32 too: rounding it to bfloat16 would cost the most accuracy.
    """
    return nnx.LayerNorm(size, epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)


def rms_norm(size: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """x / sqrt(mean(x^2) + epsilon) * scale, in float32 for any input dtype."""
    return nnx.RMSNorm(size, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)


def with_adapters(out: jax.Array, adapters: nnx.Dict, names: Sequence[str], x: jax.Array, dropout: Any) -> jax.Array:
    """Adds the outputs of the adapters of these names for x (B, T, I) to the linear maps' joint output (B, T, ...)."""
    added = {name: adapters[name](x, dropout) for name in names if name in adapters}
    if not added:
        return out
    zeros = jnp.zeros_like(next(iter(added.values())))
    return out + jnp.stack([added.get(name, zeros) for name in names], axis=2).reshape(out.shape)


class SelfAttention(nnx.Module):
    """Attention over rotated queries and keys: (B, T, D) -> (B, T, D). A subclass makes the projections."""

    rope: Rope
    out: nnx.LinearGeneral
    lora: nnx.Dict  # see `lora.with_lora`

    @abstractmethod
    def project(self, x: jax.Array, dropout: Dropout | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (B, T, N, H), keys and values (B, T, G, H)."""

    def __call__(self, x: jax.Array, lengths: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        q, k, v = self.project(x, dropout)
        cos, sin = rope_tables(self.rope, num_tokens=q.shape[1], head_dim=q.shape[-1])
        attended = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, lengths)
        return with_adapters(self.out(attended), self.lora, ("o_proj",), attended.reshape(*x.shape[:2], -1), dropout)


def gelu(x: jax.Array) -> jax.Array:
    """GELU by erf, as in the reference; JAX's own uses erfc, which is slower."""
    return 0.5 * x * (1 + jax.lax.erf(x / math.sqrt(2)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"gelu": gelu, "silu": jax.nn.silu}


@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)  # the gradient recomputes it and keeps nothing
def gated(up: jax.Array, gate: jax.Array, activation: Literal["gelu", "silu"]) -> jax.Array:
    """up * activation(gate), all (B, T, F), in float32."""
    return ACTIVATIONS[activation](gate.astype(jnp.float32)) * up.astype(jnp.float32)


class GatedMLP(nnx.Module):
    """(activation(x W_gate) * (x W_up)) W_down: (B, T, D) -> (B, T, D). A subclass makes the projections."""

    activation: Literal["gelu", "silu"]
    down: nnx.LinearGeneral
    lora: nnx.Dict

    @abstractmethod
    def project(self, x: jax.Array, dropout: Dropout | None) -> tuple[jax.Array, jax.Array]:
        """x W_up and x W_gate, (B, T, F) each."""

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        hidden = drop(gated(*self.project(x, dropout), self.activation), dropout)
        return with_adapters(self.down(hidden), self.lora, ("down_proj",), hidden, dropout)
