"""FLOPs of an encoder, from its sizes.

A multiply and an add count as two. Norms, softmax, rotation, activation, pooling and the Dense head are left out: with
stella's sizes they are less than 1 % of the matrix products.
"""

from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.models import architecture_of


def products(config: EncoderConfig) -> tuple[tuple[int, int], ...]:
    """(in, out) of each matrix product with weights in a layer, such as qkv, out, up and gate, down."""
    architecture = architecture_of(config)
    sizes = architecture.sizes(config)
    matrices = [w.torch_shape(sizes) for w in architecture.weights if w.stacked and w.flax.endswith("kernel")]
    return tuple((inputs, outputs) for outputs, inputs in matrices)


def linear_flops(config: EncoderConfig) -> int:
    """FLOPs per token of the matrix products with weights; 805,306,368 for stella."""
    return 2 * config.num_hidden_layers * sum(rows * columns for rows, columns in products(config))


def attention_flops(config: EncoderConfig, length: int) -> int:
    """FLOPs per token of attention, 4 L N H T; 98,304 T for stella."""
    return 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length


def text_flops(config: EncoderConfig, length: int) -> int:
    """FLOPs of a text of this many tokens."""
    return length * (linear_flops(config) + attention_flops(config, length))
