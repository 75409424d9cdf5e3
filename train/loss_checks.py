"""Traits of a loss that a training step relies on, found by calling it on random embeddings."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stella_jax.errors import StellaError, first_line, short_repr
from stella_jax.similarity import unit
from train.losses import Embeddings, Loss

TRIAL_ROWS = 8  # of a trial

# Scales of the random embeddings: a hinge that is flat at one is not at another. None is unit length.
SCALES = (None, 0.01, 0.3, 1.0, 20.0)


class LossTraits:
    """How a loss treats rows.

    Args:
      loss: the loss.
      name: its name, for errors.
      num_texts: number of columns of texts.
      dim: embedding dimension E.
      columns: further columns of a real batch, (B, ...) each.
      normalized: whether the model's embeddings have unit length.

    Attributes:
      decomposable: a row's loss depends on that row alone, so a batch may be split into micro-batches.
      skips_padding: rows of weight 0 do not change the loss of other rows, so a batch may be padded.

    Raises:
      StellaError: the loss raises, cannot be compiled or differentiated, does not return one float a row, or is not
        finite or has no finite gradient at any scale.
    """

    def __init__(
        self,
        loss: Loss,
        name: str,
        num_texts: int,
        dim: int,
        columns: Mapping[str, np.ndarray],
        normalized: bool = False,
    ):
        self._loss, self._name, self._num_texts, self._dim = loss, name, num_texts, dim
        self._columns = {key: np.resize(value, (TRIAL_ROWS, *value.shape[1:])) for key, value in columns.items()}
        self._compiled = jax.jit(jax.grad(self._mean, has_aux=True))
        trials, error = [], None
        for seed, scale in enumerate(SCALES):
            try:
                trials.append(self._trial(np.random.default_rng(seed), None if normalized else scale))
            except _NotFiniteError as caught:
                error = caught
        if error and not trials:
            raise StellaError(f"{error}: not finite on random embeddings; fix the function.")
        self.decomposable = all(decomposable for decomposable, _ in trials) and self._stays_decomposable()
        self.skips_padding = self.decomposable or all(skips for _, skips in trials)

    def _stays_decomposable(self) -> bool:
        """Whether it is decomposable with noise in the further columns too: a batch's may all be equal."""
        rng = np.random.default_rng(len(SCALES))
        columns = self._columns
        floats = {key: value for key, value in columns.items() if np.issubdtype(value.dtype, np.floating)}
        if not floats:
            return True
        noise = {key: rng.standard_normal(value.shape, np.float32) for key, value in floats.items()}
        self._columns = columns | {key: value + noise[key] for key, value in floats.items()}
        try:
            return self._trial(rng, None)[0]
        except _NotFiniteError:  # the column may never have such numbers
            return True
        finally:
            self._columns = columns

    def _trial(self, rng: np.random.Generator, scale: float | None) -> tuple[bool, bool]:
        texts, half = self._random(rng, scale), TRIAL_ROWS // 2
        together = self._call(texts, np.ones(TRIAL_ROWS, np.float32))
        apart = [self._call([x[rows] for x in texts], np.ones(half, np.float32), rows) for rows in _halves()]
        weights = np.repeat(np.array([1, 0], np.float32), half)
        before, after = (
            self._call([np.concatenate([x[:half], y[half:]]) for x, y in zip(texts, other, strict=True)], weights)
            for other in (self._random(rng, scale), self._random(rng, scale))
        )
        return _equal(together, np.concatenate(apart)), _equal(before[:half], after[:half])

    def _random(self, rng: np.random.Generator, scale: float | None) -> list[np.ndarray]:
        texts = [rng.standard_normal((TRIAL_ROWS, self._dim), np.float32) for _ in range(self._num_texts)]
        return [unit(x) if scale is None else scale * x for x in texts]

    def _call(self, texts: list[np.ndarray], weights: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        columns = {key: value[rows] for key, value in self._columns.items()} | {"weights": weights}
        try:
            gradient, found = self._compiled(tuple(texts), columns)
        except StellaError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's function raises
            reason = f"{type(error).__name__}: {first_line(error)[:300].rstrip('.')}"
            raise StellaError(
                f"loss {short_repr(self._name)}: failed on a batch of random embeddings ({reason}); fix it."
            ) from error
        for what, arrays in (("loss", [found]), ("gradient of loss", gradient)):
            if not all(np.isfinite(np.asarray(array, np.float64)).all() for array in arrays):
                raise _NotFiniteError(f"{what} {short_repr(self._name)}")
        return np.asarray(found, np.float64)

    def _mean(self, texts: Embeddings, columns: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The weighted mean, as in a training step, and the loss of each row."""
        weights = columns["weights"]
        found: Any = self._loss(texts, columns)
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        if dtype is None or shape != weights.shape or not jnp.issubdtype(dtype, jnp.floating):
            name = "None" if found is None else type(found).__name__
            kind = name if dtype is None else f"{dtype} of shape {shape}"
            raise StellaError(
                f"loss {short_repr(self._name)}: returns {kind} for {len(weights)} rows; return one float a row, of "
                f"shape ({len(weights)},)."
            )
        return jnp.sum(weights * found) / jnp.sum(weights), found


class _NotFiniteError(Exception):
    """A loss or its gradient is not finite at one scale."""


def _halves() -> tuple[slice, slice]:
    return slice(0, TRIAL_ROWS // 2), slice(TRIAL_ROWS // 2, TRIAL_ROWS)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-5, atol=1e-6 * max(1.0, float(np.abs(a).max()))))
