"""How tensors of model.safetensors map to leaves of the parameter tree, both ways: rows of a table.

Axes: D hidden, N heads, G heads of keys and values, H head_dim, F intermediate, V vocabulary, K token types,
E embedding dimension; 2 and 3 are themselves. Torch stores Linear weights as (out, in) and packs axes into one; here
each axis is one of its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """One row: torch name (`{i}` stands for the layer), path of the leaf, and the axes on both sides."""

    torch: str
    flax: str
    torch_axes: str
    flax_axes: str

    @property
    def stacked(self) -> bool:
        """Whether the leaf holds all layers along a leading L axis."""
        return "{i}" in self.torch

    def torch_shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.torch_axes.split())

    def flax_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape of the leaf, of one layer of it where it is stacked."""
        return tuple(sizes[axis] for axis in self.flax_axes.replace(" ", ""))

    def to_flax(self, tensor: np.ndarray, sizes: Sizes) -> np.ndarray:
        """A view of a torch tensor with the leaf's axes."""
        axes, wanted = self.torch_axes.replace(" ", ""), self.flax_axes.replace(" ", "")
        split = tensor.reshape([sizes[axis] for axis in axes])
        return split.transpose([axes.index(axis) for axis in wanted])

    def to_torch(self, leaf: np.ndarray, sizes: Sizes) -> np.ndarray:
        """A contiguous torch tensor from a leaf (from one layer of it where it is stacked)."""
        axes, wanted = self.flax_axes.replace(" ", ""), self.torch_axes.replace(" ", "")
        moved = leaf.transpose([axes.index(axis) for axis in wanted])
        return np.ascontiguousarray(moved).reshape(self.torch_shape(sizes))


HEAD = (
    WeightSpec("linear.weight", "kernel", "E D", "D E"),
    WeightSpec("linear.bias", "bias", "E", "E"),
)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map of the layers as transformers has it, where a checkpoint may pack several into one tensor.

    Attributes:
      module, kernel: where it lies in the parameter tree.
      torch: the module that holds it in transformers' class, whose names need not be those of the checkpoint.
      index: its place in a kernel that holds several; None where that is its own.
    """

    module: str
    kernel: str
    torch: str
    index: int | None = None

    def adapter(self, name: str) -> str:
        """Where the adapter of the map of this name lies."""
        return f"encoder/layers/{self.module}/lora/{name}"


ALL_LINEAR = "all-linear"  # peft's word for all linear maps of the layers
