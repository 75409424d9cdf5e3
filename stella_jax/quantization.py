"""Embeddings at a lower precision: the arithmetic of sentence-transformers' `quantize_embeddings`, bit for bit."""

from dataclasses import dataclass

import numpy as np

from stella_jax.errors import StellaError

PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
# Precisions that need ranges: 256 levels between the minimum and the maximum of each dimension.
SCALAR = ("int8", "uint8")
PACKED = ("binary", "ubinary")


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Minimum and maximum of each dimension, [E] float32 each.

    Raises:
      StellaError: their shapes differ, a value is not finite, a minimum is above its maximum, or they are further
        apart than float32 holds.
    """

    minimum: np.ndarray
    maximum: np.ndarray

    def __post_init__(self):
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is refused below
            low, high = np.asarray(self.minimum, np.float32), np.asarray(self.maximum, np.float32)
            object.__setattr__(self, "minimum", low)
            object.__setattr__(self, "maximum", high)
            if low.ndim != 1 or low.shape != high.shape:
                raise StellaError(
                    f"ranges: shapes {low.shape} and {high.shape}; pass a minimum and a maximum of shape (dim,)."
                )
            for fault, wrong in (
                ("is not finite", ~(np.isfinite(low) & np.isfinite(high))),
                ("has its minimum above its maximum", low > high),
                ("is wider than float32 holds", ~np.isfinite(high - low)),
            ):
                if wrong.any():
                    i = int(np.argmax(wrong))
                    raise StellaError(f"ranges: dimension {i} ({low[i]} to {high[i]}) {fault}; fix the ranges.")

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "Ranges":
        """Those of embeddings [n, E] float32 themselves.

        Raises:
          StellaError: there is only one embedding, or none, or one is not finite.
        """
        if len(embeddings) < 2:
            raise StellaError(
                f"ranges: int8 and uint8 take them from two embeddings or more, not {len(embeddings)}; pass more texts."
            )
        return cls(embeddings.min(axis=0), embeddings.max(axis=0))

    @property
    def dim(self) -> int:
        return len(self.minimum)

    @property
    def steps(self) -> np.ndarray:
        """Width of a level in each dimension, [E] float32; 1 where minimum and maximum are equal."""
        steps = (self.maximum - self.minimum) / np.float32(255)
        return np.where(steps == 0, np.float32(1), steps)


def quantize(embeddings: np.ndarray, precision: str, ranges: Ranges | None = None) -> np.ndarray:
    """Embeddings at another precision; each row follows from itself and the ranges alone.

    Args:
      embeddings: [n, E] float32, finite at this precision (see `finite_rows`).
      precision: one of `PRECISIONS`.
      ranges: for int8 and uint8, of E dimensions; values outside get the lowest or highest level.

    Returns:
      [n, E] float32, float16, int8 or uint8; for "binary" and "ubinary" the signs (1 where above 0), eight to a byte
      from the highest bit on, [n, ceil(E / 8)] int8 (shifted by 128) or uint8.

    Raises:
      StellaError: there are no ranges where they are needed, or they are of other dimensions.
    """
    if precision in SCALAR:
        if ranges is None or ranges.dim != embeddings.shape[1]:
            given = f"ranges of {ranges.dim}" if ranges else "none"
            raise StellaError(f"ranges: {precision} needs them for {embeddings.shape[1]} dimensions; got {given}.")
        with np.errstate(over="ignore"):  # far outside of the ranges
            levels = np.clip(np.floor((embeddings - ranges.minimum) / ranges.steps), 0, 255)
        return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
    if precision in PACKED:
        bits = np.packbits(embeddings > 0, axis=-1)
        return bits if precision == "ubinary" else (bits - np.uint8(128)).view(np.int8)
    return embeddings.astype(precision, copy=False)


def dequantize(embeddings: np.ndarray, precision: str, dim: int, ranges: Ranges | None = None) -> np.ndarray:
    """[n, dim] float32 of what `quantize` gave: levels in their place in the ranges, bits as 1 and -1."""
    if precision in SCALAR:
        assert ranges is not None
        levels = embeddings.astype(np.float64) + (128 if precision == "int8" else 0)
        return (levels * ranges.steps + ranges.minimum).astype(np.float32)
    if precision in PACKED:
        bits = embeddings.view(np.uint8) ^ np.uint8(0x80 if precision == "binary" else 0)
        return np.unpackbits(bits, axis=-1, count=dim).astype(np.float32) * 2 - 1
    return embeddings.astype(np.float32, copy=False)


def finite_rows(embeddings: np.ndarray, precision: str) -> np.ndarray:
    """Which rows of [n, E] float32 can be written at this precision, [n] bool.

    A row with a value that is not finite cannot, nor for float16 one that would round to infinity (65,520 and above).
    """
    with np.errstate(over="ignore"):
        rounded = embeddings.astype(np.float16) if precision == "float16" else embeddings
    return np.asarray(np.isfinite(rounded).all(axis=1))


def vector_layout(precision: str, dim: int) -> tuple[np.dtype, int]:
    """The dtype of a row of `quantize`, and how many of them it has."""
    if precision in PACKED:
        return np.dtype(np.int8 if precision == "binary" else np.uint8), -(-dim // 8)
    return np.dtype(precision), dim
