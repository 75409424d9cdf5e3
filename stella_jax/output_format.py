"""The format in which `encode` returns embeddings: truncated, normalized, quantized; numpy arrays or torch tensors."""

import logging
from typing import Any

import numpy as np

from stella_jax.arguments import check_choice
from stella_jax.quantization import SCALAR, Ranges, quantize
from stella_jax.similarity import unit
from stella_jax.torch_tensors import torch_from_numpy

# As in sentence-transformers' `encode`.
ENCODE_PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
# Ranges of fewer embeddings give a warning, as in sentence-transformers.
MIN_RANGE_TEXTS = 100


class OutputFormat:
    """Converts embeddings [n, E] float32 to the requested format.

    Args:
      truncate_dim: how many numbers of each embedding to keep.
      normalize: whether to scale them to unit length afterwards.
      precision: "float32" or None; "int8" or "uint8" for 256 levels in the ranges of these embeddings; "binary" or
        "ubinary" for their signs, eight to a byte.
      numpy: whether to return a numpy array.
      tensor: whether to return a torch tensor instead; with neither, a list of tensors.

    Raises:
      StellaError: the precision is not supported, or torch is not installed.
    """

    def __init__(self, truncate_dim: int, normalize: bool, precision: str | None, numpy: bool, tensor: bool):
        self._precision = "float32" if precision is None else precision
        check_choice("precision", self._precision, ENCODE_PRECISIONS)
        self._truncate_dim, self._normalize = truncate_dim, normalize
        self._convert = torch_from_numpy() if tensor or not numpy else np.asarray
        self._as_list = not (tensor or numpy)

    def __call__(self, result: np.ndarray | list[np.ndarray]) -> Any:
        """Embeddings [n, E], or the token embeddings [tokens, D] of each text, which are not truncated or normalized.

        Raises:
          StellaError: int8 or uint8 cannot have ranges, since there is only one embedding.
        """
        if isinstance(result, list):
            return [self._convert(each) for each in self._quantized_list(result)]
        embeddings = result[:, : self._truncate_dim]
        embeddings = self._convert(self._quantized(unit(embeddings) if self._normalize else embeddings))
        return list(embeddings) if self._as_list else embeddings

    def _quantized_list(self, matrices: list[np.ndarray]) -> list[np.ndarray]:
        """Each matrix quantized, with joint ranges."""
        if self._precision == "float32" or not matrices:
            return matrices
        ends = np.cumsum([len(each) for each in matrices])
        return np.split(self._quantized(np.concatenate(matrices)), ends[:-1])

    def _quantized(self, embeddings: np.ndarray) -> np.ndarray:
        ranges = None
        if self._precision in SCALAR:
            if not len(embeddings):
                return embeddings.astype(self._precision)
            ranges = Ranges.of(embeddings)
            if len(embeddings) < MIN_RANGE_TEXTS:
                logging.getLogger(__name__).warning(
                    "%s ranges from only %d embeddings; quantize with ranges of more.", self._precision, len(embeddings)
                )
        return quantize(embeddings, self._precision, ranges)
