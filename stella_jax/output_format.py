"""The form in which `encode` returns embeddings: cut, scaled, packed; numpy arrays or torch tensors."""

from typing import Any

import numpy as np

from stella_jax.arguments import check_choice
from stella_jax.similarity import unit
from stella_jax.torch_tensors import torch_from_numpy

PRECISIONS = ("float32", "binary", "ubinary")


class OutputFormat:
    """Turns embeddings [n, E] float32 into what was asked for.

    Args:
      truncate_dim: how many numbers of each are kept.
      normalize: whether they are then scaled to unit length.
      precision: "float32" or None; "binary" or "ubinary" for their signs, eight to a byte.
      numpy: whether to return a numpy array.
      tensor: whether to return a torch tensor rather; with neither it is a list of tensors.

    Raises:
      StellaError: the precision is unknown, or torch is not installed.
    """

    def __init__(self, truncate_dim: int, normalize: bool, precision: str | None, numpy: bool, tensor: bool):
        self._precision = "float32" if precision is None else precision
        check_choice("precision", self._precision, PRECISIONS)
        self._truncate_dim, self._normalize = truncate_dim, normalize
        self._convert = torch_from_numpy() if tensor or not numpy else np.asarray
        self._listed = not (tensor or numpy)

    def __call__(self, result: np.ndarray | list[np.ndarray]) -> Any:
        """Embeddings [n, E], or the token embeddings [tokens, D] of each text, which are not cut or scaled."""
        if isinstance(result, list):
            return [self._convert(each) for each in result]
        embeddings = result[:, : self._truncate_dim]
        embeddings = self._convert(quantize(unit(embeddings) if self._normalize else embeddings, self._precision))
        return list(embeddings) if self._listed else embeddings


def quantize(embeddings: np.ndarray, precision: str) -> np.ndarray:
    """The arithmetic of sentence-transformers' `quantize_embeddings`."""
    if precision == "float32":
        return embeddings
    bits = np.packbits(embeddings > 0, axis=-1)
    return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
