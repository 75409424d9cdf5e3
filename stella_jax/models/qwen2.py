"""Qwen2 as an encoder (stella_en_1.5B_v5, gte-Qwen2-*-instruct): pre-norm layers, bidirectional attention.

Axes: B batch, T tokens, D hidden, N heads, G heads of keys and values, H head_dim, F intermediate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from stella_jax.checkpoint.config import (
    COMMON_SIZES,
    EncoderConfig,
    read_common_fields,
    read_number,
    refuse_unimplemented,
)
from stella_jax.checkpoint.weight_map import Linear, WeightSpec
from stella_jax.errors import StellaError, short_repr
from stella_jax.models.architecture import AXES, Architecture, native_fields, native_rope
from stella_jax.models.encoder import Encoder
from stella_jax.models.layers import Dropout, GatedMLP, SelfAttention, linear, rms_norm, with_adapters

# Fields that must have this value.
IMPLEMENTED = {"hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None}
SIZES = (*COMMON_SIZES, "num_key_value_heads")

# The class of the published remote code, whose attention is bidirectional unless is_causal is set.
BIDIRECTIONAL = "modeling_qwen.Qwen2Model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2Config(EncoderConfig):
    """Sizes and constants of a Qwen2 encoder."""

    num_key_value_heads: int
    rms_norm_eps: float

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """See `EncoderConfig.from_json`; padding is the end-of-text token unless config.json names another."""
        _refuse_causal(fields)
        pad_token = "pad_token_id" if fields.get("pad_token_id") is not None else "eos_token_id"
        config = cls(
            **read_common_fields(fields, SIZES, IMPLEMENTED, pad_token),
            rms_norm_eps=read_number({"rms_norm_eps": 1e-6, **fields}, "rms_norm_eps"),
        )
        if config.num_attention_heads % config.num_key_value_heads:
            raise StellaError(
                f"config.json: num_key_value_heads {config.num_key_value_heads} does not divide num_attention_heads "
                f"{config.num_attention_heads}."
            )
        derived = {"head_dim": config.head_dim, "layer_types": ["full_attention"] * config.num_hidden_layers}
        refuse_unimplemented(fields, {name: only for name, only in derived.items() if fields.get(name) is not None})
        return config

    def native_json(self) -> dict[str, Any]:
        """For transformers' own `Qwen2Config`."""
        return native_fields(self, SIZES, "Qwen2Model", "qwen2") | {
            "hidden_act": "silu",
            "is_causal": False,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": native_rope(self.rope),
            "use_sliding_window": False,
        }


def _refuse_causal(fields: Mapping[str, Any]) -> None:
    """Refuses a decoder: `is_causal` is not false, nor does `auto_map` name the class of the published encoders."""
    causal, auto_map = fields.get("is_causal"), fields.get("auto_map")
    if causal is False:
        return
    named = auto_map.get("AutoModel") if isinstance(auto_map, Mapping) else None
    if causal is None and isinstance(named, str) and named.rpartition("--")[2] == BIDIRECTIONAL:
        return
    raise StellaError(
        f"config.json: a decoder for text generation (is_causal = {short_repr(causal)}, auto_map.AutoModel = "
        f"{short_repr(named)}); pass an embedding checkpoint (is_causal false), such as stella_en_1.5B_v5."
    )


class Embeddings(nnx.Module):
    """Word embeddings as they are: (B, T) ids -> (B, T, D)."""

    def __init__(self, config: Qwen2Config, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.word = nnx.Embed(config.vocab_size, config.hidden_size, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.word(ids).astype(jnp.float32)


class Attention(SelfAttention):
    """Grouped-query attention: N / G query heads share each key/value head."""

    def __init__(self, config: Qwen2Config, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        D, N, G, H = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.rope = config.rope
        self.q, self.k, self.v = (linear(D, (heads, H), **options) for heads in (N, G, G))
        self.out = linear((N, H), D, axis=(-2, -1), use_bias=False, **options)
        self.lora = nnx.Dict()

    def project(self, x: jax.Array, dropout: Dropout | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = (
            with_adapters(project(x), self.lora, (f"{name}_proj",), x, dropout)
            for name, project in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        return q, k, v


class MLP(GatedMLP):
    """(silu(x W_gate) * (x W_up)) W_down."""

    activation = "silu"

    def __init__(self, config: Qwen2Config, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        options: dict[str, Any] = {"use_bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.up, self.gate = (linear(config.hidden_size, config.intermediate_size, **options) for _ in range(2))
        self.down = linear(config.intermediate_size, config.hidden_size, **options)
        self.lora = nnx.Dict()

    def project(self, x: jax.Array, dropout: Dropout | None) -> tuple[jax.Array, jax.Array]:
        up = with_adapters(self.up(x), self.lora, ("up_proj",), x, dropout)
        return up, with_adapters(self.gate(x), self.lora, ("gate_proj",), x, dropout)


class Layer(nnx.Module):
    """Norm, attention, add, norm, MLP, add."""

    def __init__(self, config: Qwen2Config, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        norm = partial(rms_norm, config.hidden_size, config.rms_norm_eps, rngs=rngs)
        self.attention_norm = norm()
        self.attention = Attention(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.mlp_norm = norm()
        self.mlp = MLP(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), lengths, dropout)
        return x + self.mlp(self.mlp_norm(x), dropout)


def encoder(config: Qwen2Config, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> Encoder:
    """Makes the encoder; `dtype` as in `Encoder`, `param_dtype` is the dtype of all parameters except norms."""
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    embeddings = Embeddings(config, **options, rngs=rngs)
    norm = rms_norm(config.hidden_size, config.rms_norm_eps, rngs=rngs)
    return Encoder(config, embeddings, partial(Layer, config, **options), norm, dtype=dtype, rngs=rngs)


WEIGHTS = (
    WeightSpec("embed_tokens.weight", "embeddings/word/embedding", "V D", "V D"),
    WeightSpec("layers.{i}.input_layernorm.weight", "layers/attention_norm/scale", "D", "D"),
    WeightSpec("layers.{i}.self_attn.q_proj.weight", "layers/attention/q/kernel", "NH D", "D N H"),
    WeightSpec("layers.{i}.self_attn.q_proj.bias", "layers/attention/q/bias", "NH", "N H"),
    WeightSpec("layers.{i}.self_attn.k_proj.weight", "layers/attention/k/kernel", "GH D", "D G H"),
    WeightSpec("layers.{i}.self_attn.k_proj.bias", "layers/attention/k/bias", "GH", "G H"),
    WeightSpec("layers.{i}.self_attn.v_proj.weight", "layers/attention/v/kernel", "GH D", "D G H"),
    WeightSpec("layers.{i}.self_attn.v_proj.bias", "layers/attention/v/bias", "GH", "G H"),
    WeightSpec("layers.{i}.self_attn.o_proj.weight", "layers/attention/out/kernel", "D NH", "N H D"),
    WeightSpec("layers.{i}.post_attention_layernorm.weight", "layers/mlp_norm/scale", "D", "D"),
    WeightSpec("layers.{i}.mlp.gate_proj.weight", "layers/mlp/gate/kernel", "F D", "D F"),
    WeightSpec("layers.{i}.mlp.up_proj.weight", "layers/mlp/up/kernel", "F D", "D F"),
    WeightSpec("layers.{i}.mlp.down_proj.weight", "layers/mlp/down/kernel", "D F", "F D"),
    WeightSpec("norm.weight", "norm/scale", "D", "D"),
)

ATTENTION = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out"}
MLPS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}

QWEN2 = Architecture(
    class_names=("Qwen2ForCausalLM", "Qwen2Model"),
    model_types=("qwen2",),
    config=Qwen2Config,
    encoder=encoder,
    weights=WEIGHTS,
    linears={
        name: Linear(module, f"encoder/layers/{module}/{ours}/kernel", f"layers.{{i}}.{theirs}")
        for module, theirs, names in (("attention", "self_attn", ATTENTION), ("mlp", "mlp", MLPS))
        for name, ours in names.items()
    },
    axes=AXES | {"G": "num_key_value_heads"},
    split_axes="NGF",
    prefixes=("model.",),
    passthrough=("lm_head.weight",),
)
