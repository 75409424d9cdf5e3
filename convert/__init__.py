"""Weight conversion between the PyTorch layout and the Flax/Orbax one: `python -m convert SRC DST`."""

from convert.flax_layout import to_flax
from stella_jax.torch_layout import to_torch

__all__ = ["to_flax", "to_torch"]
