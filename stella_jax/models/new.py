"""`NewModel` (stella_en_400M, gte-*-v1.5, gte-multilingual, arctic-embed-m-v2): post-norm layers.

Axes: B batch, T tokens, D hidden, N heads, H head_dim, F intermediate, K token types.
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
from stella_jax.models.architecture import AXES, Architecture, Scorer, native_fields, native_rope
from stella_jax.models.encoder import Encoder
from stella_jax.models.layers import Dropout, GatedMLP, SelfAttention, drop, layer_norm, linear, with_adapters

# Fields that must have this value.
IMPLEMENTED = {
    "hidden_act": "gelu",
    "layer_norm_type": "layer_norm",
    "position_embedding_type": "rope",
    "pack_qkv": True,
    "logn_attention_scale": False,
    "is_decoder": False,
    "add_cross_attention": False,
}
SIZES = (*COMMON_SIZES, "type_vocab_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewConfig(EncoderConfig):
    """Sizes and constants of a `NewModel`."""

    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """See `EncoderConfig.from_json`."""
        return cls(
            **read_common_fields(fields, SIZES, IMPLEMENTED),
            layer_norm_eps=read_number({"layer_norm_eps": 1e-12, **fields}, "layer_norm_eps"),
        )

    def native_json(self) -> dict[str, Any]:
        """For transformers' own `GteConfig` (>= 5.23)."""
        return native_fields(self, SIZES, "GteModel", "gte") | {
            "hidden_act": "gelu",
            "layer_norm_eps": self.layer_norm_eps,
            "rope_parameters": native_rope(self.rope),
        }


class Embeddings(nnx.Module):
    """Word plus first token-type embedding, normalized: (B, T) ids -> (B, T, D)."""

    def __init__(self, config: NewConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        embed = partial(nnx.Embed, features=config.hidden_size, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.word = embed(config.vocab_size)
        self.token_type = embed(config.type_vocab_size) if config.type_vocab_size else None
        self.norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.word(ids).astype(jnp.float32)
        if self.token_type is not None:
            x = x + self.token_type.embedding[None, :1].astype(jnp.float32)
        return self.norm(x)


class Attention(SelfAttention):
    """Attention with one product for queries, keys and values."""

    def __init__(self, config: NewConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        heads = (config.num_attention_heads, config.head_dim)
        self.rope = config.rope
        self.qkv = linear(config.hidden_size, (3, *heads), **options)
        self.out = linear(heads, config.hidden_size, axis=(-2, -1), **options)
        self.lora = nnx.Dict()

    def project(self, x: jax.Array, dropout: Dropout | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        qkv = with_adapters(self.qkv(x), self.lora, ("q_proj", "k_proj", "v_proj"), x, dropout)
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


class MLP(GatedMLP):
    """(gelu(x W_gate) * (x W_up)) W_down + b, with one product for gate and up."""

    activation = "gelu"

    def __init__(self, config: NewConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.up_gate = linear(config.hidden_size, (2, config.intermediate_size), use_bias=False, **options)
        self.down = linear(config.intermediate_size, config.hidden_size, **options)
        self.lora = nnx.Dict()

    def project(self, x: jax.Array, dropout: Dropout | None) -> tuple[jax.Array, jax.Array]:
        up_gate = with_adapters(self.up_gate(x), self.lora, ("up_proj", "gate_proj"), x, dropout)
        return up_gate[:, :, 0], up_gate[:, :, 1]


class Layer(nnx.Module):
    """Attention, add, norm, MLP, add, norm."""

    def __init__(self, config: NewConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        norm = partial(layer_norm, config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.attention = Attention(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.attention_norm = norm()
        self.mlp = MLP(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.mlp_norm = norm()

    def __call__(self, x: jax.Array, lengths: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        x = self.attention_norm(x + drop(self.attention(x, lengths, dropout), dropout, 1))
        return self.mlp_norm(x + drop(self.mlp(x, dropout), dropout, 2))


def encoder(config: NewConfig, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> Encoder:
    """Makes the encoder; `dtype` as in `Encoder`, `param_dtype` is the dtype of all parameters except norms."""
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    embeddings = Embeddings(config, **options, rngs=rngs)
    return Encoder(config, embeddings, partial(Layer, config, **options), dtype=dtype, rngs=rngs)


WEIGHTS = (
    WeightSpec("embeddings.word_embeddings.weight", "embeddings/word/embedding", "V D", "V D"),
    WeightSpec("embeddings.token_type_embeddings.weight", "embeddings/token_type/embedding", "K D", "K D"),
    WeightSpec("embeddings.LayerNorm.weight", "embeddings/norm/scale", "D", "D"),
    WeightSpec("embeddings.LayerNorm.bias", "embeddings/norm/bias", "D", "D"),
    WeightSpec("encoder.layer.{i}.attention.qkv_proj.weight", "layers/attention/qkv/kernel", "3NH D", "D 3 N H"),
    WeightSpec("encoder.layer.{i}.attention.qkv_proj.bias", "layers/attention/qkv/bias", "3NH", "3 N H"),
    WeightSpec("encoder.layer.{i}.attention.o_proj.weight", "layers/attention/out/kernel", "D NH", "N H D"),
    WeightSpec("encoder.layer.{i}.attention.o_proj.bias", "layers/attention/out/bias", "D", "D"),
    WeightSpec("encoder.layer.{i}.attn_ln.weight", "layers/attention_norm/scale", "D", "D"),
    WeightSpec("encoder.layer.{i}.attn_ln.bias", "layers/attention_norm/bias", "D", "D"),
    WeightSpec("encoder.layer.{i}.mlp.up_gate_proj.weight", "layers/mlp/up_gate/kernel", "2F D", "D 2 F"),
    WeightSpec("encoder.layer.{i}.mlp.down_proj.weight", "layers/mlp/down/kernel", "D F", "F D"),
    WeightSpec("encoder.layer.{i}.mlp.down_proj.bias", "layers/mlp/down/bias", "D", "D"),
    WeightSpec("encoder.layer.{i}.mlp_ln.weight", "layers/mlp_norm/scale", "D", "D"),
    WeightSpec("encoder.layer.{i}.mlp_ln.bias", "layers/mlp_norm/bias", "D", "D"),
)

QKV = ("attention", "encoder/layers/attention/qkv/kernel", "layers.{i}.self_attn")
UP_GATE = ("mlp", "encoder/layers/mlp/up_gate/kernel", "layers.{i}.mlp")

NEW = Architecture(
    class_names=("NewModel", "GteModel"),
    model_types=("new", "gte"),
    config=NewConfig,
    encoder=encoder,
    weights=WEIGHTS,
    linears={
        "q_proj": Linear(*QKV, 0),
        "k_proj": Linear(*QKV, 1),
        "v_proj": Linear(*QKV, 2),
        "o_proj": Linear("attention", "encoder/layers/attention/out/kernel", "layers.{i}.self_attn"),
        "gate_proj": Linear(*UP_GATE, 1),
        "up_proj": Linear(*UP_GATE, 0),
        "down_proj": Linear("mlp", "encoder/layers/mlp/down/kernel", "layers.{i}.mlp"),
    },
    axes=AXES | {"K": "type_vocab_size"},
    split_axes="NF",
    prefixes=("new.", "gte."),
    # Sparse weights of gte-multilingual-base.
    passthrough=("classifier.weight", "classifier.bias"),
    dropout_rate=0.1,
    scorer=Scorer(
        class_names=("NewForSequenceClassification", "GteForSequenceClassification"),
        pooler=(
            WeightSpec("pooler.dense.weight", "pooler/kernel", "P D", "D P"),
            WeightSpec("pooler.dense.bias", "pooler/bias", "P", "P"),
        ),
        classifier=(
            WeightSpec("classifier.weight", "kernel", "E D", "D E"),
            WeightSpec("classifier.bias", "bias", "E", "E"),
        ),
        native_prefix="gte.",
    ),
)
