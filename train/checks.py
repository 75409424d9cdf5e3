"""What is said about a run that would teach nothing, or has not: before it starts, and while it goes."""

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
LEAST_MOVE = 1e-9  # of an update, beside the parameters; float32 resolves 6e-8 of a number


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    """Refuses rows that make no batch.

    Raises:
      StellaError: fewer rows than a batch where batches that are not full are left out.
    """
    if recipe.data.drop_last and len(dataset) < recipe.loop.batch_size:
        raise StellaError(
            f"{dataset.source} has {len(dataset)} rows, fewer than loop.batch_size = {recipe.loop.batch_size}, and "
            "data.drop_last leaves such a batch out; lower the one or set the other to false."
        )


def warnings_for(recipe: Recipe, dataset: Dataset, plan: Plan, normalized: bool) -> Iterator[str]:
    """Sentences about what is allowed and may not be meant.

    Args:
      plan: the batches of the first epoch.
      normalized: whether the embeddings are of unit length.
    """
    if dataset.skipped:
        yield f"{dataset.source}: left out {dataset.skipped}."
    if len(dataset) < recipe.loop.batch_size:
        yield f"{dataset.source} has {len(dataset)} rows, fewer than loop.batch_size = {recipe.loop.batch_size}."
    poor = poor_batches(dataset, plan) if recipe.loop.batch_size > 1 and len(dataset) > 1 else 0
    if poor > (len(dataset) % recipe.loop.batch_size == 1):  # a single row that is left over is no fault
        text, count = most_frequent(dataset)
        yield (
            f"{poor} of {len(plan)} batches of an epoch hold a single row, or the same text in every row: "
            f"{short_repr(text)} stands in {count} places of {dataset.source}."
        )
    if recipe.loss.name == "triplet":
        distance, margin = itemgetter("distance", "margin")(loss_arguments(recipe.loss))
        unit = normalized or distance == "cosine" or bool(recipe.loss.matryoshka_dims)
        if margin > 2 and unit and distance != "manhattan":
            why = "cosine distances" if distance == "cosine" else "embeddings of unit length"
            yield f"loss.margin = {margin:g} can never be met: two distances of {why} differ by at most 2."


def check_learning_rates(learning_rates: np.ndarray) -> None:
    """Refuses learning rates (steps,) under which nothing trains.

    Raises:
      StellaError: every learning rate is 0.
    """
    if not learning_rates.any():
        raise StellaError(
            f"nothing would train: the learning rate is 0 at each of the {len(learning_rates)} step(s), all of them "
            "warm-up; raise loop.epochs or loop.max_steps, or set optimizer.warmup_ratio = 0."
        )


def check_finite(kept: int, step: int, metrics: Mapping[str, float]) -> None:
    """Stops a run that has diverged.

    Args:
      kept: the step of the newest checkpoint, 0 for none.

    Raises:
      StellaError: a metric of this step is NaN or infinite.
    """
    wrong = [name for name, value in metrics.items() if not np.isfinite(value)]
    if wrong:
        last = f"the checkpoint of step {kept} is kept" if kept else "there is no checkpoint yet"
        raise StellaError(
            f"{wrong[0]} is {metrics[wrong[0]]} at step {step}; {last}. Lower optimizer.learning_rate and begin anew "
            "in another output."
        )


class UpdateCheck:
    """Whether parameters move once they should."""

    def __init__(self, params: Params):
        self._before = _bits(params)
        self._steps = 0
        self._pushed = False
        self._farthest = 0.0
        self.is_open = True

    def after(self, params: Params, metrics: Mapping[str, float]) -> str | None:
        """To be called after each step while it `is_open`, for the first few; returns what is odd about them.

        Raises:
          StellaError: there were gradients and learning rates, and no parameter has changed.
        """
        self._steps += metrics["learning_rate"] > 0
        self._pushed = self._pushed or (metrics["learning_rate"] > 0 and metrics["grad_norm"] > 0)
        self._farthest = max(self._farthest, metrics["update_norm"] / max(metrics["param_norm"], 1e-30))
        if self._steps < FIRST_STEPS:
            return None
        self.is_open = False
        now = _bits(params)
        moved = any(int(now[name]) != int(before) for name, before in self._before.items())
        if moved and self._farthest > LEAST_MOVE:
            return None
        if self._pushed:
            raise StellaError(
                f"the parameters do not move: after {self._steps} steps with a learning rate above 0, now "
                f"{metrics['learning_rate']:g}, they are where they were; raise optimizer.learning_rate."
            )
        return f"no parameter has changed after {self._steps} steps: no row had a loss with a gradient so far."


@jax.jit
def _bits(params: Params) -> dict[str, jax.Array]:
    """A checksum of the bits of each parameter."""
    bits = {name: jax.lax.bitcast_convert_type(leaf, jnp.uint32) for name, leaf in params.items()}
    return {name: jnp.sum(each, dtype=jnp.uint32) for name, each in bits.items()}
