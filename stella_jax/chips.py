"""Accelerators by name, with the peaks that their makers publish. Does not import JAX, so that --help is fast."""

from dataclasses import dataclass
from typing import NamedTuple


class Chip(NamedTuple):
    """A chip: its platform in JAX, dense bfloat16 FLOPs per second, and bytes of memory."""

    platform: str
    bf16_flops: float
    memory: float


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; nvidia.com's data sheets, SXM, without sparsity.
CHIPS = {
    "v4": Chip("tpu", 275e12, 32e9),
    "v5e": Chip("tpu", 197e12, 16e9),
    "v5p": Chip("tpu", 459e12, 95e9),
    "v6e": Chip("tpu", 918e12, 32e9),
    "tpu7x": Chip("tpu", 2307e12, 192e9),
    "a100": Chip("gpu", 312e12, 80e9),
    "h100": Chip("gpu", 989e12, 80e9),
    "h200": Chip("gpu", 989e12, 141e9),
}

# Share of the peak that estimates assume for the encoder.
ASSUMED_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Chips:
    """A number of chips of one kind."""

    name: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} x {self.name}"

    @property
    def kind(self) -> Chip:
        return CHIPS[self.name]
