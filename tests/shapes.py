"""Sizes of the random encoders that are compared with PyTorch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """An encoder's sizes and its rope: theta and divisor as in GteConfig's linear scaling.

    With heads of keys it is a Qwen2, else a NewModel.
    """

    hidden: int
    heads: int
    layers: int
    intermediate: int
    token_types: int
    theta: float
    divisor: float = 1.0
    pad_id: int = 0
    eps: float = 1e-12
    kv_heads: int = 0


SHAPES = {
    # head_dim 64, two token types and scaled rope, as in stella
    "stella-like": Shape(128, 2, 3, 256, token_types=2, theta=320000.0, divisor=2 ** (2 / 64)),
    # no token types, as in gte-base-en; an odd number of heads; an epsilon that matters
    "gte-base-like": Shape(48, 3, 3, 96, token_types=0, theta=1e6, divisor=2 ** (2 / 16), eps=1e-3),
    # no rope scaling, one token type, pad id 1, as in arctic
    "arctic-like": Shape(96, 3, 2, 192, token_types=1, theta=160000.0, pad_id=1),
    # head_dim 64 again, the strongest published scaling, intermediate is not a multiple of hidden
    "multilingual-like": Shape(256, 4, 2, 320, token_types=1, theta=160000.0, divisor=8 ** (2 / 64), pad_id=1),
    # six query heads on two key heads, padding with the end-of-text token, as in stella's 1.5B
    "qwen2-like": Shape(192, 6, 3, 320, token_types=0, theta=1e6, pad_id=1533, eps=1e-6, kv_heads=2),
    # one key head per query head; another base
    "qwen2-ungrouped": Shape(64, 4, 2, 96, token_types=0, theta=1e4, pad_id=1533, eps=1e-6, kv_heads=4),
    # one key head for all; an epsilon that matters
    "qwen2-one-key-head": Shape(128, 8, 2, 200, token_types=0, theta=1e6, pad_id=1533, eps=1e-2, kv_heads=1),
}
