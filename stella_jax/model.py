"""The encoder, top to bottom: embeddings, then post-norm layers of attention and GLU MLP, stacked and scanned.

Inference passes no dropout, and there is then none in the program.

Axes: B batch, T tokens, D hidden, N heads, H head_dim, F intermediate, L layers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from stella_jax.attention import attend, rope_tables, rotate
from stella_jax.config import EncoderConfig
from stella_jax.sharding import platform

# The name of dropout's masks for policies of `jax.checkpoint`: a byte a number, and slow to draw again.
DROPOUT_MASK = "dropout_mask"


@partial(jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["rate"])
@dataclass(frozen=True, slots=True)
class Dropout:
    """Zeroes a share `rate` of the numbers, drawn by `key`, and scales up the others."""

    rate: float
    key: jax.Array

    def fold_in(self, data: int | jax.Array) -> "Dropout":
        """A dropout that draws independently of those of other numbers, as `jax.random.fold_in`."""
        return Dropout(self.rate, jax.random.fold_in(self.key, data))

    def with_rate(self, rate: float) -> "Dropout":
        """A dropout of another share."""
        return Dropout(rate, self.key)

    def __call__(self, x: jax.Array) -> jax.Array:
        kept = checkpoint_name(jax.random.bernoulli(self.key, 1 - self.rate, x.shape), DROPOUT_MASK)
        return jnp.where(kept, x / (1 - self.rate), 0)


def dot(x: jax.Array, kernel: jax.Array, *dimensions: Any, **options: Any) -> jax.Array:
    """`jax.lax.dot_general`, rounded to x's dtype.

    XLA on CPU, in jax 0.10, multiplies bfloat16 as it is only where the product is float32; else it converts the
    factors first and takes twice the time.
    """
    if platform() == "cpu":
        options["preferred_element_type"] = jnp.float32
    return jax.lax.dot_general(x, kernel, *dimensions, **options).astype(x.dtype)


def drop(x: jax.Array, dropout: Dropout | None, place: int = 0) -> jax.Array:
    return dropout.fold_in(place)(x) if dropout and dropout.rate else x


def _adapted(out: jax.Array, adapters: nnx.Dict, names: Sequence[str], x: jax.Array, dropout: Any) -> jax.Array:
    """What linear maps of x (B, T, I) give together, (B, T, ...), with what the adapters of these names add to it."""
    added = {name: adapters[name](x, dropout) for name in names if name in adapters}
    if not added:
        return out
    zeros = jnp.zeros_like(next(iter(added.values())))
    return out + jnp.stack([added.get(name, zeros) for name in names], axis=2).reshape(out.shape)


def _norm(config: EncoderConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm in float32, whatever its input; the variance as published, not E[x^2] - E[x]^2.

    Its output, the residual stream, stays float32 too: rounded to bfloat16 it is what costs most accuracy there.
    """
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=jnp.float32, rngs=rngs
    )


class Embeddings(nnx.Module):
    """Word plus first token-type embedding, normalised: (B, T) ids -> (B, T, D)."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        embed = partial(nnx.Embed, features=config.hidden_size, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.word = embed(config.vocab_size)
        self.token_type = embed(config.type_vocab_size) if config.type_vocab_size else None
        self.norm = _norm(config, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.word(ids).astype(jnp.float32)
        if self.token_type is not None:
            x = x + self.token_type.embedding[None, :1].astype(jnp.float32)
        return self.norm(x)


class Attention(nnx.Module):
    """Multi-head attention over rotated queries and keys: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        linear = partial(nnx.LinearGeneral, dot_general=dot, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        heads = (config.num_attention_heads, config.head_dim)
        self.rope = config.rope
        self.qkv = linear(config.hidden_size, (3, *heads))
        self.out = linear(heads, config.hidden_size, axis=(-2, -1))
        self.lora = nnx.Dict()  # see `lora.with_lora`

    def __call__(self, x: jax.Array, lengths: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        qkv = _adapted(self.qkv(x), self.lora, ("q_proj", "k_proj", "v_proj"), x, dropout)
        q, k, v = (qkv[:, :, i] for i in range(3))  # (B, T, N, H) each
        cos, sin = rope_tables(self.rope, num_tokens=q.shape[1], head_dim=q.shape[-1])
        attended = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, lengths)
        return _adapted(self.out(attended), self.lora, ("o_proj",), attended.reshape(*x.shape[:2], -1), dropout)


@partial(jax.checkpoint, prevent_cse=False)  # a gradient computes it again rather than keep all of its steps
def _gated(up_gate: jax.Array) -> jax.Array:
    """up * gelu(gate) of (B, T, 2, F), float32: (B, T, F). By erf, as in the reference; JAX's own takes erfc's time."""
    up, gate = (up_gate[:, :, i].astype(jnp.float32) for i in range(2))
    return 0.5 * gate * (1 + jax.lax.erf(gate / math.sqrt(2))) * up


class MLP(nnx.Module):
    """Gated linear unit with exact-erf GELU: (gelu(x W_gate) * (x W_up)) W_down + b."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        linear = partial(nnx.LinearGeneral, dot_general=dot, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.up_gate = linear(config.hidden_size, (2, config.intermediate_size), use_bias=False)
        self.down = linear(config.intermediate_size, config.hidden_size)
        self.lora = nnx.Dict()

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        up_gate = _adapted(self.up_gate(x), self.lora, ("up_proj", "gate_proj"), x, dropout)
        gated = drop(_gated(up_gate), dropout)
        return _adapted(self.down(gated), self.lora, ("down_proj",), gated, dropout)


class Layer(nnx.Module):
    """One post-norm block: attention, add, norm, MLP, add, norm."""

    def __init__(self, config: EncoderConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.attention = Attention(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.attention_norm = _norm(config, rngs)
        self.mlp = MLP(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.mlp_norm = _norm(config, rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        x = self.attention_norm(x + drop(self.attention(x, lengths, dropout), dropout, 1))
        return self.mlp_norm(x + drop(self.mlp(x, dropout), dropout, 2))


class Encoder(nnx.Module):
    """`NewModel`: token ids to one vector per token.

    The parameters of the layers are stacked along a leading L axis and scanned, so that compile time does not grow with
    depth.

    Args:
      config: the sizes.
      dtype: what matmuls and activations are computed in; the residual stream, norms, softmax and rotary angles stay
        float32.
      param_dtype: what parameters other than those of the norms are kept in.
    """

    def __init__(
        self, config: EncoderConfig, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        self.dtype = jnp.dtype(dtype)
        self.num_layers = config.num_hidden_layers
        self.hidden_size = config.hidden_size
        self.lora: Any = None  # the `lora.LoraConfig` of its adapters, if it has some
        self.embeddings = Embeddings(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        @nnx.split_rngs(splits=config.num_hidden_layers)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> Layer:
            return Layer(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        self.layers = stacked(rngs)

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
          dropout: in training, on the embeddings, the attention's output, inside the MLP, and on its output.
          remat_policy: what of a layer stays in memory for its gradient, a policy of `jax.checkpoint`; the rest is
            computed again. None keeps all but the steps of the gate.

        Returns:
          The last hidden state (B, T, D) float32, and the states after each layer (L, B, T, D), which cost nothing
          under jit where they are not used.
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

        by_layer = dropout and jax.vmap(dropout.fold_in)(jnp.arange(1, self.num_layers + 1))
        return jax.lax.scan(step, drop(self.embeddings(ids), dropout), (layers, by_layer))
