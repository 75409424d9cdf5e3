"""The encoder of every architecture: embeddings, stacked layers under a scan, and optionally a last norm.

Inference passes no dropout, so the compiled program has none.

Axes: B batch, T tokens, D hidden, L layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.models.layers import Dropout, drop


class Encoder(nnx.Module):
    """Token ids to one vector per token.

    The layers' parameters are stacked along a leading L axis and scanned, so compile time does not grow with depth.

    Args:
      config: the sizes.
      embeddings: (B, T) ids -> (B, T, D) float32.
      layer: makes one layer, (x (B, T, D), lengths, dropout) -> (B, T, D) float32.
      norm: applied to the last layer's output.
      dtype: of matmuls and activations; the residual stream, norms, softmax and rotary angles stay float32.
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
        self.lora: Any = None  # the `LoraConfig` of its adapters, if it has any
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
          dropout: for training; applied to the embeddings and inside the layers.
          remat_policy: a policy of `jax.checkpoint` that says what a layer keeps for its gradient; the rest is
            recomputed. None keeps everything but the intermediate values of the gate.

        Returns:
          The last hidden state (B, T, D) float32, after the last norm if there is one, and the states after each layer
          (L, B, T, D), before that norm. Under jit the latter cost nothing if they are not used.
        """
        # If the user asked for float32, no chip may silently multiply at a lower precision.
        with jax.default_matmul_precision("highest" if self.dtype == jnp.float32 else "default"):
            return self._run(ids, lengths, dropout, remat_policy)

    def _run(
        self,
        ids: jax.Array,
        lengths: jax.Array,
        dropout: Dropout | None,
        remat_policy: Callable[..., bool] | None,
    ) -> tuple[jax.Array, jax.Array]:
        # Split by hand and scanned by JAX: nnx.scan raises over a module that a transform has closed over. This is the
        # same program with and without a transform.
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
