"""Embeddings at lower precisions, bit for bit as sentence-transformers' `quantize_embeddings`."""

from dataclasses import dataclass

import numpy as np

from stella_jax.arguments import check_choice
from stella_jax.errors import StellaError
from stella_jax.option_values import PRECISIONS

# Precisions with ranges: 256 levels from the minimum to the maximum of each dimension.
SCALAR = ("int8", "uint8")
PACKED = ("binary", "ubinary")


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Minimum and maximum of each dimension, [E] float32 each.

    Raises:
      StellaError: the shapes differ, a value is not finite, a minimum is above its maximum, or the difference
        overflows float32.
    """

    minimum: np.ndarray
    maximum: np.ndarray

    def __post_init__(self):
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is refused below
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
        """The ranges of embeddings [n, E] float32.

        Raises:
          StellaError: there are fewer than two embeddings, or one is not finite.
        """
        if len(embeddings) < 2:
            raise StellaError(
                f"ranges: int8 and uint8 need at least two embeddings, got {len(embeddings)}; pass more texts."
            )
        return cls(embeddings.min(axis=0), embeddings.max(axis=0))

    @property
    def dim(self) -> int:
        return len(self.minimum)

    @property
    def steps(self) -> np.ndarray:
        """Width of a level in each dimension, [E] float32; 1 if minimum and maximum are equal."""
        steps = (self.maximum - self.minimum) / np.float32(255)
        return np.where(steps == 0, np.float32(1), steps)


def quantize(embeddings: np.ndarray, precision: str, ranges: Ranges | None = None) -> np.ndarray:
    """Embeddings at another precision; each row depends only on itself and the ranges.

    Args:
      embeddings: [n, E] float32, finite; for float16 below 65,520.
      precision: "float32", "float16", "int8", "uint8", "binary" or "ubinary".
      ranges: of E dimensions, for int8 and uint8; values outside get the lowest or highest level.

    Returns:
      [n, E] float32, float16, int8 or uint8; for "binary" and "ubinary" the signs (1 if above 0), eight to a byte
      starting at the highest bit, [n, ceil(E / 8)] int8 (shifted by 128) or uint8.

    Raises:
      StellaError: the precision is not supported, or ranges are needed but missing, or have another number of
        dimensions.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision in SCALAR:
        ranges = _check_ranges(ranges, precision, embeddings.shape[1])
        with np.errstate(over="ignore"):  # far outside of the ranges
            levels = np.clip(np.floor((embeddings - ranges.minimum) / ranges.steps), 0, 255)
        return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
    if precision in PACKED:
        bits = np.packbits(embeddings > 0, axis=-1)
        return bits if precision == "ubinary" else (bits - np.uint8(128)).view(np.int8)
    return embeddings.astype(precision, copy=False)


def dequantize(embeddings: np.ndarray, precision: str, dim: int, ranges: Ranges | None = None) -> np.ndarray:
    """Turns the output of `quantize` back into [n, dim] float32: levels by the ranges, bits to 1 and -1.

    Args:
      embeddings: as `quantize` returns them.
      precision, ranges: as they were passed to `quantize`.
      dim: the number of dimensions E, which packed bits do not show.

    Raises:
      StellaError: as `quantize`.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision in SCALAR:
        ranges = _check_ranges(ranges, precision, dim)
        levels = embeddings.astype(np.float64) + (128 if precision == "int8" else 0)
        return (levels * ranges.steps + ranges.minimum).astype(np.float32)
    if precision in PACKED:
        bits = embeddings.view(np.uint8) ^ np.uint8(0x80 if precision == "binary" else 0)
        return np.unpackbits(bits, axis=-1, count=dim).astype(np.float32) * 2 - 1
    return embeddings.astype(np.float32, copy=False)


def _check_ranges(ranges: Ranges | None, precision: str, dim: int) -> Ranges:
    """The ranges, if they have this number of dimensions."""
    if ranges is None or ranges.dim != dim:
        given = f"{ranges.dim}" if ranges else "none"
        raise StellaError(
            f"ranges: {precision} needs {dim} dimensions, got {given}; pass Ranges.of(...) of the float32 embeddings."
        )
    return ranges


def finite_rows(embeddings: np.ndarray, precision: str) -> np.ndarray:
    """Which rows of [n, E] float32 have only finite values at this precision, [n] bool.

    In float16, values of 65,520 and more round to infinity.
    """
    with np.errstate(over="ignore"):
        rounded = embeddings.astype(np.float16) if precision == "float16" else embeddings
    return np.asarray(np.isfinite(rounded).all(axis=1))


def vector_layout(precision: str, dim: int) -> tuple[np.dtype, int]:
    """The dtype and the length of a row of `quantize`."""
    if precision in PACKED:
        return np.dtype(np.int8 if precision == "binary" else np.uint8), -(-dim // 8)
    return np.dtype(precision), dim
