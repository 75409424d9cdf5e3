"""The rows of a weight table: how tensors of model.safetensors map to leaves of the parameter tree, both ways.

Axes: D hidden, N heads, G heads of keys and values, H head_dim, F intermediate, V vocabulary, K token types,
E embedding dimension; 2 and 3 stand for themselves. Torch stores Linear weights as (out, in) and packs axes into one;
leaves have separate axes.
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
        """Whether the leaf holds all layers, along a leading L axis."""
        return "{i}" in self.torch

    def torch_shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.torch_axes.split())

    def flax_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape of the leaf, or of one layer if it is stacked."""
        return tuple(sizes[axis] for axis in self.flax_axes.replace(" ", ""))

    def to_flax(self, tensor: np.ndarray, sizes: Sizes) -> np.ndarray:
        """A view of a torch tensor with the leaf's axes."""
        axes, wanted = self.torch_axes.replace(" ", ""), self.flax_axes.replace(" ", "")
        split = tensor.reshape([sizes[axis] for axis in axes])
        return split.transpose([axes.index(axis) for axis in wanted])

    def to_torch(self, leaf: np.ndarray, sizes: Sizes) -> np.ndarray:
        """A contiguous torch tensor from a leaf, or from one layer if it is stacked."""
        axes, wanted = self.flax_axes.replace(" ", ""), self.torch_axes.replace(" ", "")
        moved = leaf.transpose([axes.index(axis) for axis in wanted])
        return np.ascontiguousarray(moved).reshape(self.torch_shape(sizes))


HEAD = (
    WeightSpec("linear.weight", "kernel", "E D", "D E"),
    WeightSpec("linear.bias", "bias", "E", "E"),
)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map of the layers in transformers' class; a checkpoint may pack several into one tensor.

    Attributes:
      module, kernel: its place in the parameter tree.
      torch: the module that holds it in transformers' class, whose names may differ from the checkpoint's.
      index: its index in a kernel that packs several; None if the kernel holds only this map.
    """

    module: str
    kernel: str
    torch: str
    index: int | None = None

    def adapter(self, name: str) -> str:
        """The path of the adapter of the map of this name."""
        return f"encoder/layers/{self.module}/lora/{name}"


ALL_LINEAR = "all-linear"  # peft's word for all linear maps of the layers
