"""The table [new_head]."""

from dataclasses import dataclass, field

from train.sections.fields import one_of, optional_one_of


@dataclass(frozen=True, slots=True)
class NewHeadSection:
    """A new Dense head, initialized at random with the recipe's seed.

    Attributes:
      dim: embedding dimension, at most 1,000,000.
      pooling: mean or cls; None is the checkpoint's.
      bias: whether it has a bias.
      activation: identity or tanh.
    """

    dim: int = field(metadata={"least": 1, "most": 1_000_000})
    pooling: str | None = optional_one_of("mean", "cls")
    bias: bool = True
    activation: str = one_of("identity", "tanh")
