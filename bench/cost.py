"""Lower bound of the encoder's memory traffic, from its sizes."""

from collections.abc import Iterable

from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.flops import linear_flops

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def batch_bytes(config: EncoderConfig, lengths: Iterable[int], dtype: str) -> int:
    """Bytes of memory traffic of a batch if every layer were one fused pass.

    The weights are read once, and each layer reads and writes the hidden states (T, D) in float32. Attention scores and
    other intermediates are assumed to stay on the chip, so no system needs less.
    """
    L, D = config.num_hidden_layers, config.hidden_size
    weights = linear_flops(config) // 2 * ITEM_BYTES[dtype]
    return weights + sum(lengths) * 2 * L * D * 4
