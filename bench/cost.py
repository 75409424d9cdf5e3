"""What the encoder has to move through memory at least, by its sizes alone."""

from collections.abc import Iterable

from stella_jax.config import EncoderConfig
from stella_jax.flops import linear_flops

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def batch_bytes(config: EncoderConfig, lengths: Iterable[int], dtype: str) -> int:
    """Bytes that a batch moves through memory where every layer is one fused pass.

    The weights are read once, and each layer reads and writes the hidden states, which are float32 (T, D). Scores and
    what else is inside of a layer is taken to stay on the chip, so that this is less than any system moves.
    """
    L, D = config.num_hidden_layers, config.hidden_size
    weights = linear_flops(config) // 2 * ITEM_BYTES[dtype]
    return weights + sum(lengths) * 2 * L * D * 4
