"""Conversion of weights between the PyTorch layout and the Flax/Orbax layout: `python -m convert SRC DST`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.flax_layout import to_flax
    from stella_jax.checkpoint.torch_layout import to_torch

__all__ = ["to_flax", "to_torch"]

# Imported on first use, so that --help does not wait for JAX.
_MODULES = {"to_flax": "convert.flax_layout", "to_torch": "stella_jax.checkpoint.torch_layout"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
