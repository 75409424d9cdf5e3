"""A third architecture, in one file: pre-norm layers with LayerNorms without bias, and its own parameter names.

Axes: D hidden, N heads, H head_dim, F intermediate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from stella_jax.checkpoint.config import COMMON_SIZES, EncoderConfig, read_common_fields, read_number
from stella_jax.checkpoint.weight_map import Linear, WeightSpec
from stella_jax.models.architecture import AXES, Architecture, native_fields, native_rope
from stella_jax.models.encoder import Encoder
from stella_jax.models.layers import Dropout, GatedMLP, SelfAttention, linear, with_adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig(EncoderConfig):
    layer_norm_eps: float

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        common = read_common_fields(fields, COMMON_SIZES, implemented={})
        return cls(**common, layer_norm_eps=read_number(fields, "layer_norm_eps"))

    def native_json(self) -> dict[str, Any]:
        rest = {"layer_norm_eps": self.layer_norm_eps, "rope_parameters": native_rope(self.rope)}
        return native_fields(self, COMMON_SIZES, "ToyModel", "toy") | rest


class Embeddings(nnx.Module):
    def __init__(self, config: ToyConfig, **options: Any):
        self.table = nnx.Embed(config.vocab_size, config.hidden_size, **options)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.table(ids).astype(jnp.float32)


class Mixer(SelfAttention):
    def __init__(self, config: ToyConfig, **options: Any):
        D, N, H = config.hidden_size, config.num_attention_heads, config.head_dim
        self.rope = config.rope
        self.qkv = nnx.List([linear(D, (N, H), use_bias=False, **options) for _ in range(3)])
        self.out = linear((N, H), D, axis=(-2, -1), use_bias=False, **options)
        self.lora = nnx.Dict()

    def project(self, x: jax.Array, dropout: Dropout | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        names = ("query", "key", "value")
        q, k, v = (with_adapters(m(x), self.lora, (name,), x, dropout) for name, m in zip(names, self.qkv, strict=True))
        return q, k, v


class Gate(GatedMLP):
    activation = "silu"

    def __init__(self, config: ToyConfig, **options: Any):
        self.both = linear(config.hidden_size, (2, config.intermediate_size), use_bias=False, **options)
        self.down = linear(config.intermediate_size, config.hidden_size, use_bias=False, **options)
        self.lora = nnx.Dict()

    def project(self, x: jax.Array, dropout: Dropout | None) -> tuple[jax.Array, jax.Array]:
        both = with_adapters(self.both(x), self.lora, ("up", "gate"), x, dropout)
        return both[:, :, 0], both[:, :, 1]


class Layer(nnx.Module):
    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs, **options: Any):
        before = partial(norm, config, rngs=rngs)
        self.before_mixer, self.mixer = before(), Mixer(config, **options, rngs=rngs)
        self.before_gate, self.gate = before(), Gate(config, **options, rngs=rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        x = x + self.mixer(self.before_mixer(x), lengths, dropout)
        return x + self.gate(self.before_gate(x), dropout)


def norm(config: ToyConfig, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_bias=False, dtype=jnp.float32, rngs=rngs
    )


def encoder(config: ToyConfig, *, rngs: nnx.Rngs, **options: Any) -> Encoder:
    layer = partial(Layer, config, **options)
    embeddings = Embeddings(config, **options, rngs=rngs)
    return Encoder(config, embeddings, layer, norm(config, rngs=rngs), dtype=options["dtype"], rngs=rngs)


MIXER = {"query": "qkv/0", "key": "qkv/1", "value": "qkv/2", "o_proj": "out"}
TOY = Architecture(
    class_names=("ToyModel",),
    model_types=("toy",),
    config=ToyConfig,
    encoder=encoder,
    weights=(
        WeightSpec("tokens.weight", "embeddings/table/embedding", "V D", "V D"),
        WeightSpec("blocks.{i}.norm1.weight", "layers/before_mixer/scale", "D", "D"),
        WeightSpec("blocks.{i}.wq", "layers/mixer/qkv/0/kernel", "NH D", "D N H"),
        WeightSpec("blocks.{i}.wk", "layers/mixer/qkv/1/kernel", "NH D", "D N H"),
        WeightSpec("blocks.{i}.wv", "layers/mixer/qkv/2/kernel", "NH D", "D N H"),
        WeightSpec("blocks.{i}.wo", "layers/mixer/out/kernel", "D NH", "N H D"),
        WeightSpec("blocks.{i}.norm2.weight", "layers/before_gate/scale", "D", "D"),
        WeightSpec("blocks.{i}.w13", "layers/gate/both/kernel", "2F D", "D 2 F"),
        WeightSpec("blocks.{i}.w2", "layers/gate/down/kernel", "D F", "F D"),
        WeightSpec("last.weight", "norm/scale", "D", "D"),
    ),
    linears={
        **{name: Linear("mixer", f"encoder/layers/mixer/{ours}/kernel", "blocks.{i}") for name, ours in MIXER.items()},
        "up": Linear("gate", "encoder/layers/gate/both/kernel", "blocks.{i}", 0),
        "gate": Linear("gate", "encoder/layers/gate/both/kernel", "blocks.{i}", 1),
        "down_proj": Linear("gate", "encoder/layers/gate/down/kernel", "blocks.{i}"),
    },
    axes=AXES,
    split_axes="NF",
)
