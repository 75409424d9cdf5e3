"""From token vectors to one embedding: pooling, then a Dense head, both in float32."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from stella_jax.arguments import check_choice

Pooling = Literal["mean", "cls", "lasttoken"]
Activation = Literal["identity", "tanh"]


@dataclass(frozen=True, slots=True)
class Head:
    """A linear map from the pooled vector to `dim` numbers, then an activation.

    Attributes:
      folder: `2_Dense_*`; a reranker's head has no folder, and this is the name of its tensors.
      has_pooler: for a reranker: whether a Dense layer of the encoder's width, with tanh, comes first.
    """

    folder: str
    dim: int
    bias: bool = True
    activation: Activation = "identity"
    has_pooler: bool = False


# A reranker's head: the score of a pair from the state of its first token.
CLASSIFIER = Head("classifier", 1, has_pooler=True)


def pool(hidden: jax.Array, lengths: jax.Array, mode: Pooling) -> jax.Array:
    """Pools (B, T, D) to (B, D) float32: the mean, the first ("cls") or the last of each row's `lengths[b]` tokens."""
    if mode == "cls":
        return hidden[:, 0].astype(jnp.float32)
    if mode == "lasttoken":
        return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0].astype(jnp.float32)
    mask = jnp.arange(hidden.shape[1])[None] < lengths[:, None]
    total = jnp.sum(hidden.astype(jnp.float32) * mask[:, :, None], axis=1)
    return total / lengths[:, None].astype(jnp.float32)


class Dense(nnx.Module):
    """A Dense head over (B, D) float32: `activation(x kernel + bias)`, (B, E) float32, in full float32 precision.

    Args:
      head: the sizes and the activation.
      in_features: D.

    Raises:
      StellaError: the activation is not supported.
    """

    def __init__(self, head: Head, in_features: int, *, rngs: nnx.Rngs):
        check_choice("activation", head.activation, get_args(Activation))
        initialize = nnx.initializers.lecun_normal()
        self.spec = head
        pooler = Head("pooler", in_features, activation="tanh")
        self.pooler = Dense(pooler, in_features, rngs=rngs) if head.has_pooler else None
        self.kernel = nnx.Param(initialize(rngs.params(), (in_features, head.dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(head.dim, jnp.float32)) if head.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.pooler(x) if self.pooler else x
        out = jnp.einsum("bd,de->be", x, self.kernel[...], precision="highest")
        if self.bias is not None:
            out = out + self.bias[...][None]
        return jnp.tanh(out) if self.spec.activation == "tanh" else out


def normalize(embedding: jax.Array) -> jax.Array:
    """Scales (B, E) to unit length; a zero vector stays zero (torch.nn.functional.normalize, eps 1e-12)."""
    norm = jnp.linalg.norm(embedding, axis=-1, keepdims=True)
    return embedding / jnp.maximum(norm, 1e-12)
