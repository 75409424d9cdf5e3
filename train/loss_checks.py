"""What a training step must know of a loss, found by calling it on random embeddings."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from stella_jax.errors import StellaError, first_line, short_repr
from train.losses import Loss

ROWS = 8  # of a trial
SCALES = (0.01, 0.3, 1.0, 20.0)  # of its embeddings: a hinge that is flat at one is not at another


class LossTraits:
    """How a loss treats rows.

    Args:
      columns: further columns of a real batch, (B, ...) each.

    Attributes:
      decomposable: a row's loss depends on that row alone, so that a batch may be cut into parts.
      skips_padding: rows of weight 0 change nothing for the others, so that a batch may be filled up.

    Raises:
      StellaError: the loss raises, or returns another shape, no floats, or numbers that are not finite.
    """

    def __init__(self, loss: Loss, name: str, num_texts: int, dim: int, columns: Mapping[str, np.ndarray]):
        self._loss, self._name, self._num_texts, self._dim = loss, name, num_texts, dim
        self._columns = {key: np.resize(value, (ROWS, *value.shape[1:])) for key, value in columns.items()}
        trials = [self._trial(np.random.default_rng(seed), scale) for seed, scale in enumerate(SCALES)]
        self.decomposable = all(decomposable for decomposable, _ in trials)
        self.skips_padding = self.decomposable or all(skips for _, skips in trials)

    def _trial(self, rng: np.random.Generator, scale: float) -> tuple[bool, bool]:
        texts, half = self._random(rng, scale), ROWS // 2
        together = self._call(texts, np.ones(ROWS, np.float32))
        apart = [self._call([x[rows] for x in texts], np.ones(half, np.float32), rows) for rows in _halves()]
        weights = np.repeat(np.array([1, 0], np.float32), half)
        before, after = (
            self._call([np.concatenate([x[:half], y[half:]]) for x, y in zip(texts, other, strict=True)], weights)
            for other in (self._random(rng, scale), self._random(rng, scale))
        )
        return _equal(together, np.concatenate(apart)), _equal(before[:half], after[:half])

    def _random(self, rng: np.random.Generator, scale: float) -> list[np.ndarray]:
        return [scale * rng.standard_normal((ROWS, self._dim), np.float32) for _ in range(self._num_texts)]

    def _call(self, texts: list[np.ndarray], weights: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        columns = {key: jnp.asarray(value[rows]) for key, value in self._columns.items()}
        columns["weights"] = jnp.asarray(weights)
        try:
            found = np.asarray(self._loss(tuple(map(jnp.asarray, texts)), columns))
        except StellaError:
            raise
        except Exception as error:  # whatever a user's function raises
            reason = first_line(error).rstrip(".")
            raise StellaError(
                f"loss {short_repr(self._name)} fails on a trial batch: {type(error).__name__}: {reason}."
            ) from error
        if found.shape != (len(weights),) or found.dtype.kind not in "fV":
            raise StellaError(
                f"loss {short_repr(self._name)} returns {found.dtype} of shape {found.shape} for {len(weights)} rows; "
                f"it must return one float a row, ({len(weights)},)."
            )
        if not np.isfinite(found.astype(np.float64)).all():
            raise StellaError(f"loss {short_repr(self._name)} is not finite on a trial batch of random embeddings.")
        return found.astype(np.float64)


def _halves() -> tuple[slice, slice]:
    return slice(0, ROWS // 2), slice(ROWS // 2, ROWS)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-5, atol=1e-6 * max(1.0, float(np.abs(a).max()))))
