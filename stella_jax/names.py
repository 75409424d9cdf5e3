"""The weight-name table: how each tensor of model.safetensors maps to a leaf of the parameter tree, both ways, once.

Axes: D hidden, N heads, H head_dim, F intermediate, V vocabulary, K token types, E embedding dimension; 2 and 3 are
themselves. Torch stores Linear weights as (out, in) and packs axes into one; here each axis is one of its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stella_jax.config import EncoderConfig

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Weight:
    """One row: torch name (`{i}` stands for the layer), path of the leaf, and the axes on both sides."""

    torch: str
    flax: str
    torch_axes: str
    flax_axes: str

    @property
    def stacked(self) -> bool:
        """Whether the leaf holds all layers along a leading L axis."""
        return "{i}" in self.torch

    def torch_shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.torch_axes.split())

    def flax_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape of the leaf, of one layer of it where it is stacked."""
        return tuple(sizes[axis] for axis in self.flax_axes.replace(" ", ""))

    def to_flax(self, tensor: np.ndarray, sizes: Sizes) -> np.ndarray:
        """A view of a torch tensor with the leaf's axes."""
        axes, wanted = self.torch_axes.replace(" ", ""), self.flax_axes.replace(" ", "")
        split = tensor.reshape([sizes[axis] for axis in axes])
        return split.transpose([axes.index(axis) for axis in wanted])

    def to_torch(self, leaf: np.ndarray, sizes: Sizes) -> np.ndarray:
        """A contiguous torch tensor from a leaf (from one layer of it where it is stacked)."""
        axes, wanted = self.flax_axes.replace(" ", ""), self.torch_axes.replace(" ", "")
        moved = leaf.transpose([axes.index(axis) for axis in wanted])
        return np.ascontiguousarray(moved).reshape(self.torch_shape(sizes))


ENCODER = (
    Weight("embeddings.word_embeddings.weight", "embeddings/word/embedding", "V D", "V D"),
    Weight("embeddings.token_type_embeddings.weight", "embeddings/token_type/embedding", "K D", "K D"),
    Weight("embeddings.LayerNorm.weight", "embeddings/norm/scale", "D", "D"),
    Weight("embeddings.LayerNorm.bias", "embeddings/norm/bias", "D", "D"),
    Weight("encoder.layer.{i}.attention.qkv_proj.weight", "layers/attention/qkv/kernel", "3NH D", "D 3 N H"),
    Weight("encoder.layer.{i}.attention.qkv_proj.bias", "layers/attention/qkv/bias", "3NH", "3 N H"),
    Weight("encoder.layer.{i}.attention.o_proj.weight", "layers/attention/out/kernel", "D NH", "N H D"),
    Weight("encoder.layer.{i}.attention.o_proj.bias", "layers/attention/out/bias", "D", "D"),
    Weight("encoder.layer.{i}.attn_ln.weight", "layers/attention_norm/scale", "D", "D"),
    Weight("encoder.layer.{i}.attn_ln.bias", "layers/attention_norm/bias", "D", "D"),
    Weight("encoder.layer.{i}.mlp.up_gate_proj.weight", "layers/mlp/up_gate/kernel", "2F D", "D 2 F"),
    Weight("encoder.layer.{i}.mlp.down_proj.weight", "layers/mlp/down/kernel", "D F", "F D"),
    Weight("encoder.layer.{i}.mlp.down_proj.bias", "layers/mlp/down/bias", "D", "D"),
    Weight("encoder.layer.{i}.mlp_ln.weight", "layers/mlp_norm/scale", "D", "D"),
    Weight("encoder.layer.{i}.mlp_ln.bias", "layers/mlp_norm/bias", "D", "D"),
)

HEAD = (
    Weight("linear.weight", "kernel", "E D", "D E"),
    Weight("linear.bias", "bias", "E", "E"),
)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map of the layers as transformers' GteModel has it, where the checkpoint packs several into one tensor.

    Attributes:
      module, kernel: where it lies in the parameter tree.
      torch: the module that holds it in GteModel, whose names are not those of the checkpoint.
      index: its place in a kernel that holds several; None where that is its own.
    """

    module: str
    kernel: str
    torch: str
    index: int | None = None

    def adapter(self, name: str) -> str:
        """Where the adapter of the map of this name lies."""
        return f"encoder/layers/{self.module}/lora/{name}"

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Layers, inputs and outputs, of the shape of the kernel."""
        axes = shape if self.index is None else (*shape[:2], *shape[3:])
        inputs = axes[1:-1] if self.index is None else axes[1:2]
        return axes[0], math.prod(inputs), math.prod(axes[1:]) // math.prod(inputs)


QKV = ("attention", "encoder/layers/attention/qkv/kernel", "layers.{i}.self_attn")
UP_GATE = ("mlp", "encoder/layers/mlp/up_gate/kernel", "layers.{i}.mlp")
LINEARS = {
    "q_proj": Linear(*QKV, 0),
    "k_proj": Linear(*QKV, 1),
    "v_proj": Linear(*QKV, 2),
    "o_proj": Linear("attention", "encoder/layers/attention/out/kernel", "layers.{i}.self_attn"),
    "gate_proj": Linear(*UP_GATE, 1),
    "up_proj": Linear(*UP_GATE, 0),
    "down_proj": Linear("mlp", "encoder/layers/mlp/down/kernel", "layers.{i}.mlp"),
}
ALL_LINEAR = "all-linear"  # peft's word for all of them

# Tensors that published files hold beside the encoder (sparse weights of gte-multilingual-base). Dense embeddings do
# not use them; conversion carries them along unchanged.
CARRIED = ("classifier.weight", "classifier.bias")

# What NewFor* classes put before the encoder's names.
PREFIX = "new."


def encoder_weights(config: EncoderConfig) -> tuple[Weight, ...]:
    """The rows that a checkpoint of this configuration has: no token-type table where it has no token types."""
    return tuple(w for w in ENCODER if config.type_vocab_size or "token_type" not in w.torch)


def encoder_sizes(config: EncoderConfig) -> dict[str, int]:
    """The size of every axis letter."""
    return {
        "V": config.vocab_size,
        "K": config.type_vocab_size,
        "D": config.hidden_size,
        "N": config.num_attention_heads,
        "H": config.head_dim,
        "F": config.intermediate_size,
        "L": config.num_hidden_layers,
        "2": 2,
        "3": 3,
    }
