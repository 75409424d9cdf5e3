"""The configuration of a model's adapters (LoRA)."""

import math
from dataclasses import dataclass
from typing import Any

from stella_jax.checkpoint.weight_map import Linear
from stella_jax.errors import StellaError, short_repr


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Configuration of a model's adapters.

    Attributes:
      rank: R.
      alpha: an adapter's output is multiplied by alpha / rank.
      dropout: rate of dropout on an adapter's inputs in training, independent of the encoder's.
      linears: the linear maps that get an adapter in every layer, by their names in transformers' class.

    Raises:
      StellaError: a value is out of range.
    """

    rank: int
    alpha: float
    dropout: float
    linears: tuple[tuple[str, Linear], ...]

    def __post_init__(self) -> None:
        for name, fits, what in (
            ("rank", _is_number(self.rank, int) and self.rank >= 1, "a whole number of at least 1"),
            ("alpha", _is_number(self.alpha) and self.alpha > 0, "a finite number above 0"),
            ("dropout", _is_number(self.dropout) and 0 <= self.dropout < 1, "a number from 0 to below 1"),
        ):
            if not fits:
                raise StellaError(f"{name} must be {what}, not {short_repr(getattr(self, name))}.")


def _is_number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
