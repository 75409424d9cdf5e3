"""Converts torch tensors for callers who use them. torch is not a dependency; it is imported only if requested."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from stella_jax.errors import StellaError


def torch_from_numpy() -> Callable[[np.ndarray], Any]:
    """`torch.from_numpy`: a CPU tensor that shares the array's memory.

    Raises:
      StellaError: torch is not installed.
    """
    try:
        return import_module("torch").from_numpy
    except ImportError as error:
        raise StellaError(
            "torch: not installed; install it, or leave out convert_to_tensor and convert_to_numpy=False."
        ) from error


def to_numpy(value: Any) -> Any:
    """Converts tensors, also in a list, to numpy arrays, floating point to float32; anything else is unchanged."""
    if isinstance(value, list):
        return [to_numpy(each) for each in value]
    if not _is_tensor(value):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def like(array: np.ndarray, *examples: Any) -> Any:
    """The array; or if an example is a tensor or a list of tensors, a tensor on its device."""
    first = (example[0] if isinstance(example, list) and example else example for example in examples)
    tensor: Any = next((each for each in first if _is_tensor(each)), None)
    return array if tensor is None else torch_from_numpy()(array).to(tensor.device)


def _is_tensor(value: Any) -> bool:
    """Does not import torch: a caller with a tensor has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
