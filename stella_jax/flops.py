"""What the encoder has to compute, by its sizes alone.

FLOPs count a multiply and an add as two. Norms, softmax, rotation, GELU, pooling and the Dense head are left out: with
stella's sizes they are less than 1 % of the products.
"""

from stella_jax.config import EncoderConfig


def products(config: EncoderConfig) -> tuple[tuple[int, int], ...]:
    """The (in, out) sizes of a layer's matrix products: qkv, out, up and gate, down."""
    D, F = config.hidden_size, config.intermediate_size
    return (D, 3 * D), (D, D), (D, 2 * F), (F, D)


def linear_flops(config: EncoderConfig) -> int:
    """FLOPs of a token in the matrix products with weights, 2 L (4 D^2 + 3 D F): 805,306,368 for stella."""
    return 2 * config.num_hidden_layers * sum(rows * columns for rows, columns in products(config))


def attention_flops(config: EncoderConfig, length: int) -> int:
    """FLOPs of a token in the scores and sums of attention, 4 L D T: 98,304 T for stella."""
    return 4 * config.num_hidden_layers * config.hidden_size * length


def text_flops(config: EncoderConfig, length: int) -> int:
    """FLOPs of a text of so many tokens."""
    return length * (linear_flops(config) + attention_flops(config, length))
