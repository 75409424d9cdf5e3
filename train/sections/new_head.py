"""The table [new_head]."""

import dataclasses
from dataclasses import dataclass

from train.sections.fields import number, one_of, optional_one_of


@dataclass(frozen=True, slots=True)
class NewHeadSection:
    """A new Dense head, initialized at random with the recipe's seed.

    Attributes:
      dim: embedding dimension.
      pooling: mean or cls; None is the checkpoint's.
      bias: whether it has a bias.
      activation: identity or tanh.
    """

    dim: int = number(dataclasses.MISSING, least=1, most=1_000_000)
    pooling: str | None = optional_one_of("mean", "cls")
    bias: bool = True
    activation: str = one_of("identity", "tanh")
