"""The encoder of every architecture: embeddings, layers stacked and scanned, and a last norm where there is one.

Inference passes no dropout, and there is then none in the program.

Axes: B batch, T tokens, D hidden, L layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stella_jax.config import EncoderConfig
from stella_jax.models.layers import Dropout, drop


class Encoder(nnx.Module):
    """Token ids to one vector per token.

    The parameters of the layers are stacked along a leading L axis and scanned, so that compile time does not grow with
    depth.

    Args:
      config: the sizes.
      embeddings: (B, T) ids -> (B, T, D) float32.
      layer: makes one layer, (x (B, T, D), lengths, dropout) -> (B, T, D) float32.
      norm: of the last layer's output.
      dtype: what matmuls and activations are computed in; the residual stream, norms, softmax and rotary angles stay
        float32.
    """

    def __init__(
        self,
        config: EncoderConfig,
        embeddings: Any,
        layer: Callable[..., nnx.Module],
        norm: nnx.RMSNorm | nnx.LayerNorm | None = None,
        *,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.lora: Any = None  # the `lora.LoraConfig` of its adapters, if it has some
        self.embeddings = embeddings
        self.layers: Any = nnx.split_rngs(splits=config.num_hidden_layers)(nnx.vmap(lambda rngs: layer(rngs=rngs)))(
            rngs
        )
        self.norm = norm

    def __call__(
        self,
        ids: jax.Array,
        lengths: jax.Array,
        dropout: Dropout | None = None,
        remat_policy: Callable[..., bool] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes right-padded rows.

        Args:
          ids: (B, T) int32 token ids, T up to `max_position_embeddings`.
          lengths: (B,) int32, tokens before the padding of each row, at least 1.
          dropout: in training, on the embeddings and where the layers have it.
          remat_policy: what of a layer stays in memory for its gradient, a policy of `jax.checkpoint`; the rest is
            computed again. None keeps all but the steps of the gate.

        Returns:
          The last hidden state (B, T, D) float32, after the last norm where there is one, and the states after each
          layer (L, B, T, D), before it, which cost nothing under jit where they are not used.
        """
        # Where the user asked for float32, no chip may quietly multiply in less.
        with jax.default_matmul_precision("highest" if self.dtype == jnp.float32 else "default"):
            return self._run(ids, lengths, dropout, remat_policy)

    def _run(
        self,
        ids: jax.Array,
        lengths: jax.Array,
        dropout: Dropout | None,
        remat_policy: Callable[..., bool] | None,
    ) -> tuple[jax.Array, jax.Array]:
        # The layers are split by hand and scanned by JAX: nnx.scan over a module that a transform has closed over
        # raises. Called here and in every transform, this is the same program.
        graphdef, layers = nnx.split(self.layers)

        def layer(x: jax.Array, state: nnx.State, dropout: Dropout | None) -> jax.Array:
            return nnx.merge(graphdef, state)(x, lengths, dropout)

        run = jax.checkpoint(layer, policy=remat_policy) if remat_policy else layer

        def step(x: jax.Array, inputs: tuple[nnx.State, Dropout | None]) -> tuple[jax.Array, jax.Array]:
            x = run(x, *inputs)
            return x, x

        by_layer = dropout and jax.vmap(dropout.fold_in)(jnp.arange(1, self.config.num_hidden_layers + 1))
        last, states = jax.lax.scan(step, drop(self.embeddings(ids), dropout), (layers, by_layer))
        return self.norm(last) if self.norm else last, states
