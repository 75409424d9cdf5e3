"""Reads leaves layer by layer: the slice of a leaf that each device holds, or a hash of the leaf."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stella_jax.checkpoint.hashes import sha256_of_array
from stella_jax.checkpoint.weights import TorchWeights, Weights
from stella_jax.memory import aligned, copy, in_threads

SliceIndex = tuple[slice, ...]


def read_slices(weights: Weights, path: str, dtype: Any, indices: Sequence[SliceIndex]) -> list[np.ndarray]:
    """Slices of a leaf: contiguous, aligned, in `dtype`.

    The leaf is read once. In the PyTorch layout it is never whole in memory, unless a slice is the whole leaf.

    Args:
      indices: one per slice; none of them splits the axis of layers.

    Raises:
      StellaError: it cannot be read, or holds NaN or infinity.
    """
    leaf = weights.leaves[path]
    slices = [aligned(_shape(leaf.shape, index), dtype) for index in indices]
    read = _layer_reader(weights, path)

    def take(layer: int) -> None:
        source = read(layer)
        for index, part in zip(indices, slices, strict=True):
            cut = (*index[leaf.stacked :], ...)
            copy(source[cut], part[layer] if leaf.stacked else part)

    in_threads(take, len(leaf.torch_names))
    return slices


def sha256_of_leaf(weights: Weights, path: str) -> str:
    """A hash over the hashes of a leaf's layers, each of the stored numbers in the order of the leaf's axes.

    Raises:
      StellaError: it cannot be read, or holds NaN or infinity.
    """
    read = _layer_reader(weights, path)
    hashes = in_threads(lambda layer: sha256_of_array(read(layer)), len(weights.leaves[path].torch_names))
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _shape(shape: Sequence[int], index: SliceIndex) -> list[int]:
    return [len(range(size)[cut]) for size, cut in zip(shape, index, strict=True)]


def _layer_reader(weights: Weights, path: str) -> Callable[[int], np.ndarray]:
    """A function from a layer's number to the layer; a leaf that is not stacked is number 0."""
    if isinstance(weights, TorchWeights):
        return lambda layer: weights.layer(path, layer)
    whole = weights.read(path)
    return whole.__getitem__ if weights.leaves[path].stacked else lambda _: whole
