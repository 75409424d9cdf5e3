"""Checks that a run can learn something: of the recipe and the data before it starts, and of its first steps."""

from collections.abc import Iterator, Mapping
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from stella_jax.errors import StellaError, short_repr
from train.data import Dataset
from train.loss_lookup import loss_arguments
from train.plans import Plan, most_frequent, poor_batches
from train.recipe import Recipe
from train.step import Params

FIRST_STEPS = 3  # with a learning rate above 0, after which parameters must have moved
MIN_RELATIVE_UPDATE = 1e-9  # norm of an update / norm of the parameters; float32 resolves 6e-8 of a number


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Refuses a dataset that gives no batch.

    Raises:
      StellaError: it has fewer rows than a batch, and drop_last is set.
    """
    if recipe.data.drop_last and len(dataset) < recipe.loop.batch_size:
        raise StellaError(
            f"{dataset.source}: {len(dataset)} rows, fewer than loop.batch_size = {recipe.loop.batch_size}, and "
            "data.drop_last drops such a batch; lower loop.batch_size or set data.drop_last = false."
        )


def warnings_for(recipe: Recipe, dataset: Dataset, plan: Plan, normalized: bool) -> Iterator[str]:
    """Warnings about settings that are valid but may be a mistake, a sentence each.

    Args:
      plan: the batches of the first epoch.
      normalized: whether the embeddings have unit length.
    """
    if dataset.skipped:
        yield f"{dataset.source}: left out {dataset.skipped}."
    if len(dataset) < recipe.loop.batch_size:
        yield f"{dataset.source}: {len(dataset)} rows, fewer than loop.batch_size = {recipe.loop.batch_size}."
    poor = poor_batches(dataset, plan) if recipe.loop.batch_size > 1 and len(dataset) > 1 else 0
    if poor > (len(dataset) % recipe.loop.batch_size == 1):  # a single row left over at the end is normal
        text, count = most_frequent(dataset)
        yield (
            f"{dataset.source}: {poor} of {len(plan)} batches of an epoch have a single row, or the same text in every "
            f"row; {short_repr(text)} occurs {count} times."
        )
    if recipe.loss.name == "triplet":
        distance, margin = itemgetter("distance", "margin")(loss_arguments(recipe.loss))
        unit = normalized or distance == "cosine" or bool(recipe.loss.matryoshka_dims)
        if margin > 2 and unit and distance != "manhattan":
            why = "cosine distances" if distance == "cosine" else "embeddings of unit length"
            yield f"loss.margin: {margin:g} can never be reached, as two distances of {why} differ by at most 2."


def check_learning_rates(learning_rates: np.ndarray) -> None:
    """Refuses learning rates (steps,) that train nothing.

    Raises:
      StellaError: every learning rate is 0.
    """
    if not learning_rates.any():
        raise StellaError(
            f"optimizer.warmup_ratio: the learning rate is 0 in all {len(learning_rates)} step(s), as all of them are "
            "warm-up; set it to 0, or raise loop.epochs or loop.max_steps."
        )


def check_metrics(newest: int, step: int, metrics: Mapping[str, float]) -> None:
    """Stops a run that has diverged.

    Args:
      newest: the step of the newest checkpoint, 0 for none.

    Raises:
      StellaError: a metric of this step is NaN or infinite.
    """
    wrong = [name for name, value in metrics.items() if not np.isfinite(value)]
    if wrong:
        last = f"the newest checkpoint is of step {newest}" if newest else "there is no checkpoint yet"
        raise StellaError(
            f"{wrong[0]}: {metrics[wrong[0]]} at step {step} ({last}); lower optimizer.learning_rate and start again "
            "with another output."
        )


class UpdateCheck:
    """Checks that parameters change in the first steps with a learning rate above 0.

    Attributes:
      is_open: whether `after` is still to be called.
    """

    def __init__(self, params: Params):
        self._before = _bits(params)
        self._steps = 0
        self._had_gradient = False
        self._largest_update = 0.0
        self.is_open = True

    def after(self, params: Params, metrics: Mapping[str, float]) -> str | None:
        """Checks a step; returns a warning if no step had a gradient.

        Raises:
          StellaError: steps had gradients and learning rates above 0, and no parameter has changed.
        """
        self._steps += metrics["learning_rate"] > 0
        self._had_gradient = self._had_gradient or (metrics["learning_rate"] > 0 and metrics["grad_norm"] > 0)
        self._largest_update = max(self._largest_update, metrics["update_norm"] / max(metrics["param_norm"], 1e-30))
        if self._steps < FIRST_STEPS:
            return None
        self.is_open = False
        now = _bits(params)
        changed = any(int(now[name]) != int(before) for name, before in self._before.items())
        if changed and self._largest_update > MIN_RELATIVE_UPDATE:
            return None
        if self._had_gradient:
            raise StellaError(
                f"optimizer.learning_rate: {metrics['learning_rate']:g} is too small, as no parameter has changed "
                f"after {self._steps} steps; raise it."
            )
        return f"no parameter has changed after {self._steps} steps: no row's loss had a gradient."


@jax.jit
def _bits(params: Params) -> dict[str, jax.Array]:
    """A checksum of the bits of each parameter."""
    bits = {name: jax.lax.bitcast_convert_type(leaf, jnp.uint32) for name, leaf in params.items()}
    return {name: jnp.sum(each, dtype=jnp.uint32) for name, each in bits.items()}
