"""The training step: one jitted function of a state and a batch.

It depends on (seed, step, batch) only, so that a run that continues gives the bits of one that never stopped. Over a
mesh, rows are split over `data`, and the loss is that of the whole batch.

Axes: B rows, T tokens, E embedding dimension; A parts of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from stella_jax.model import DRAWN, Dropout
from stella_jax.sharding import EVERYWHERE, ROWS, place
from train.batches import Batch
from train.losses import Loss
from train.optimizer import Moments, Optimizer, adamw, learning_rates, rates, zero_moments
from train.params import STACKED, Network, Params, spec

# () float32 by name.
Metrics = dict[str, jax.Array]

Embeddings = tuple[jax.Array, ...]


# What a layer keeps for its gradient: what matrices gave and dropout drew. The functions between are cheap to compute
# again, and without them a layer takes half the memory.
KEEP = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(DRAWN)
)


class State(NamedTuple):
    """All that a step changes; `step` () int32 counts the steps made."""

    step: jax.Array
    params: Params
    moments: Moments


class Gradient(NamedTuple):
    """The loss, the share of rows where it is not 0, and the gradient of what trains."""

    loss: jax.Array
    active: jax.Array
    params: Params


@dataclass(frozen=True, slots=True)
class Settings:
    """How the gradient is taken.

    Attributes:
      seed: of dropout.
      dropout: whether there is any; the rate is the checkpoint's own.
      accumulation: parts that a batch is cut into, one in memory at a time. Loss and gradient are those of the whole
        batch; a loss that ranks across rows takes a forward pass more for it (Gao et al. 2021, GradCache).
      remat: keep nothing of a layer but its input, and compute all of it again for its gradient.
    """

    seed: int = 42
    dropout: bool = True
    accumulation: int = 1
    remat: bool = False


class Trainer:
    """The step, compiled once for each shape of a batch.

    Args:
      network, params: from `params.load`, on this mesh; only names, shapes and shardings of the parameters are kept.
      steps: of the whole training, for the schedule.

    Attributes:
      rates: what each trained leaf's learning rate is multiplied by; leaves that are not there are frozen.
      schedule: (steps,) float32, the learning rate of each step.

    Raises:
      StellaError: the optimizer's patterns fit nothing, or leave nothing to train.
    """

    def __init__(
        self,
        network: Network,
        params: Params,
        loss: Loss,
        optimizer: Optimizer,
        steps: int,
        mesh: Mesh,
        settings: Settings,
    ):
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.mesh = mesh
        self.settings = settings
        self._keep = jax.checkpoint_policies.nothing_saveable if settings.remat else KEEP
        self.schedule = learning_rates(optimizer, steps)
        self.rates = rates(optimizer, params)
        laid: dict[str, Any] = {name: leaf.sharding for name, leaf in params.items()}
        self._trained: dict[str, Any] = {name: laid[name] for name in self.rates}
        everywhere: Any = NamedSharding(mesh, EVERYWHERE)
        shardings = State(everywhere, laid, Moments(self._trained, self._trained))
        self._step = jax.jit(self._update, donate_argnums=0, out_shardings=(shardings, None))

    def start(self, params: Params) -> State:
        """The state before the first step, which uses the parameters up."""
        trained = {name: params[name] for name in self.rates}
        moments = jax.jit(zero_moments, out_shardings=Moments(self._trained, self._trained))(trained)
        return State(place(self.mesh, np.int32(0)), params, moments)

    def step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One update. The old state is used up.

        Metrics: `loss`; `grad_norm`, before clipping; `param_norm` and `update_norm`, of what trains; `active`, the
        share of rows whose loss is not 0; `learning_rate`.

        Raises:
          StellaError: the loss cannot take these columns or this head.
        """
        with jax.set_mesh(self.mesh):
            return self._step(state, self._placed(batch), self.schedule)

    def lower(self, state: State, batch: Batch) -> Any:
        """The step for these shapes, lowered and not run."""
        with jax.set_mesh(self.mesh):
            return self._step.lower(state, self._placed(batch), self.schedule)

    def _placed(self, batch: Batch) -> Batch:
        return jax.tree.map(lambda x: place(self.mesh, x, ROWS), batch)

    def _update(self, state: State, batch: Batch, schedule: jax.Array) -> tuple[State, Metrics]:
        trained = {name: state.params[name] for name in self.rates}
        gradient = self._gradient(trained, state, batch)
        rate = schedule[state.step]
        trained, moments, norms = adamw(
            self.optimizer, self.rates, trained, gradient.params, state.moments, state.step, rate
        )
        metrics = {
            "loss": gradient.loss,
            "grad_norm": norms.gradient,
            "param_norm": norms.params,
            "update_norm": norms.update,
            "active": gradient.active,
            "learning_rate": rate,
        }
        return State(state.step + 1, state.params | trained, moments), metrics

    def _gradient(self, trained: Params, state: State, batch: Batch) -> Gradient:
        """The gradient of the whole batch, part by part."""
        A = self.settings.accumulation
        key = jax.random.fold_in(jax.random.key(self.settings.seed), state.step)
        batch = batch._replace(weights=batch.weights / jnp.sum(batch.weights))

        def embed(trained: Params, part: Batch, number: jax.Array) -> Embeddings:
            return self._embed(self._whole(state.params | trained), part, jax.random.fold_in(key, number))

        def part_gradient(part: Batch, number: jax.Array, above: Embeddings | None = None) -> Gradient:
            embeddings, pull = jax.vjp(lambda trained: embed(trained, part, number), trained)
            loss, active, above = self._loss(embeddings, part.weights) if above is None else (0.0, 0.0, above)
            return Gradient(jnp.asarray(loss), jnp.asarray(active), pull(above)[0])

        if A == 1:
            gradient = part_gradient(batch, jnp.int32(0))
        else:
            parts, numbers = jax.tree.map(lambda x: _cut(x, A), batch), jnp.arange(A)
            if self.loss.row_by_row:
                gradient = _summed(part_gradient, parts, numbers)
            else:
                embeddings = jax.lax.map(lambda part: embed(trained, *part), (parts, numbers))
                joined = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), embeddings)
                loss, active, above = self._loss(joined, parts.weights.reshape(-1))
                above = jax.tree.map(lambda x, like: x.reshape(like.shape), above, embeddings)
                gradient = _summed(part_gradient, parts, numbers, above)._replace(loss=loss, active=active)
        return gradient._replace(params=jax.lax.with_sharding_constraint(gradient.params, self._trained))

    def _whole(self, params: Params) -> Params:
        """Gathers what is split over `data`, apart from the layers, which the scan gathers one by one.

        Left to itself, the compiler would rather gather the batch at the word embeddings.
        """
        specs = {name: spec(name, leaf.shape, self.mesh) for name, leaf in params.items() if STACKED not in name}
        gathered = {name: NamedSharding(self.mesh, split) for name, split in specs.items()}
        return params | jax.lax.with_sharding_constraint({name: params[name] for name in gathered}, gathered)

    def _embed(self, params: Params, batch: Batch, key: jax.Array) -> Embeddings:
        """Embeddings (B, E) of each column. Columns of the same length pass the encoder together."""
        embeddings: dict[int, jax.Array] = {}
        for length in sorted({ids.shape[1] for ids in batch.ids}):
            columns = [i for i, ids in enumerate(batch.ids) if ids.shape[1] == length]
            # Side by side, then row by row: no row leaves its device.
            ids = jnp.stack([batch.ids[i] for i in columns], axis=1).reshape(-1, length)
            lengths = jnp.stack([batch.lengths[i] for i in columns], axis=1).reshape(-1)
            together = self.network.embed(params, ids, lengths, self._dropout(key, columns[0]), self._keep)
            together = together.reshape(-1, len(columns), together.shape[-1])
            embeddings |= {i: together[:, place] for place, i in enumerate(columns)}
        return tuple(embeddings[i] for i in range(len(batch.ids)))

    def _dropout(self, key: jax.Array, place: int) -> Dropout | None:
        if not self.settings.dropout or not self.network.dropout:
            return None
        return Dropout(self.network.dropout, key).at(place)

    def _loss(self, embeddings: Embeddings, shares: jax.Array) -> tuple[jax.Array, jax.Array, Embeddings]:
        """The loss, the active share, and the loss's gradient in the embeddings; shares (B,) sum to 1 over a batch."""

        def loss(embeddings: Embeddings) -> tuple[jax.Array, jax.Array]:
            terms = self.loss.terms(embeddings, shares)
            return jnp.sum(shares * terms), jnp.sum(shares * (terms > 0))

        (value, active), gradient = jax.value_and_grad(loss, has_aux=True)(embeddings)
        return value, active, gradient


def _cut(x: jax.Array, A: int) -> jax.Array:
    """(B, ...) -> (A, B/A, ...); every part takes as many rows of each device."""
    return x.reshape(x.shape[0] // A, A, *x.shape[1:]).swapaxes(0, 1)


def _summed(gradient: Callable[..., Gradient], *parts: Any) -> Gradient:
    """The sum of the gradients of all parts, with one of them in memory beside it."""
    first = jax.tree.map(lambda x: x[0], parts)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, *first))

    def add(total: Gradient, part: Any) -> tuple[Gradient, None]:
        return jax.tree.map(jnp.add, total, gradient(*part)), None

    return jax.lax.scan(add, zero, parts)[0]
