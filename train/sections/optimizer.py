"""The table [optimizer]."""

from dataclasses import dataclass, field
from typing import Any

from train.sections.fields import number, one_of


@dataclass(frozen=True, slots=True)
class OptimizerSection:
    """The optimizer, its schedule, and which parameters it trains.

    Attributes:
      name: an optimizer of optax or optax.contrib, such as adamw, lion, adafactor, sgd or muon.
      args: further arguments of optax's function.
      learning_rate: peak of the schedule.
      schedule: decay after the warm-up: cosine or linear to 0 at the end, or constant.
      warmup_ratio: share of the steps with linear warm-up from 0.
      weight_decay: of matrices; biases and norms have none.
      max_grad_norm: clip the global norm of the gradient to this; 0 switches it off.
      train_only: patterns of the parameters to train, such as `head/*` or `encoder/layers/23/*`; others are frozen.
      freeze: patterns of parameters to freeze.
      learning_rates: pattern -> the peak learning rate of the parameters that it matches.
    """

    name: str = "adamw"
    args: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = number(2e-5, above=0)
    schedule: str = one_of("cosine", "linear", "constant")
    warmup_ratio: float = number(0.1, least=0, most=1)
    weight_decay: float = number(0.0, least=0)
    max_grad_norm: float = number(1.0, least=0)
    train_only: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    learning_rates: dict[str, float] = field(default_factory=dict, metadata={"least": 0})
