"""From token vectors to one embedding: pooling, then a Dense head; both in float32."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

Pooling = Literal["mean", "cls"]
Activation = Literal["identity", "tanh"]


@dataclass(frozen=True, slots=True)
class Head:
    """A `2_Dense_*` folder: a linear map from the pooled vector to `dim` numbers, then an activation."""

    folder: str
    dim: int
    bias: bool = True
    activation: Activation = "identity"


def pool(hidden: jax.Array, lengths: jax.Array, mode: Pooling) -> jax.Array:
    """Pools (B, T, D) over each row's first `lengths[b]` tokens ("mean") or takes the first ("cls"): (B, D) float32."""
    if mode == "cls":
        return hidden[:, 0].astype(jnp.float32)
    mask = jnp.arange(hidden.shape[1])[None] < lengths[:, None]
    total = jnp.sum(hidden.astype(jnp.float32) * mask[:, :, None], axis=1)
    return total / lengths[:, None].astype(jnp.float32)


def apply_head(head: Head, params: dict[str, Any], pooled: jax.Array) -> jax.Array:
    """Applies a Dense head to (B, D) float32; `params` holds "kernel" (D, E) and, where it has one, "bias" (E,)."""
    out = jnp.einsum("bd,de->be", pooled, params["kernel"].astype(jnp.float32), precision="highest")
    if head.bias:
        out = out + params["bias"].astype(jnp.float32)[None]
    return jnp.tanh(out) if head.activation == "tanh" else out


def normalize(embedding: jax.Array) -> jax.Array:
    """Scales (B, E) to unit length; a zero vector stays zero (torch.nn.functional.normalize, eps 1e-12)."""
    norm = jnp.linalg.norm(embedding, axis=-1, keepdims=True)
    return embedding / jnp.maximum(norm, 1e-12)
