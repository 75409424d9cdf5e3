"""The training step: one jitted function of a state and a batch, for any loss and any optax optimizer.

It depends on (seed, step, batch) only, so a resumed run gives the same bits as an uninterrupted one. Over a mesh, texts
and rows are sharded over `data`, and the loss is the whole batch's.

Axes: A micro-batches of a batch, B rows of a micro-batch, E embedding dimension.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stella_jax.embedding_model import EmbeddingModel, check_model
from stella_jax.errors import StellaError, short_repr
from stella_jax.models import architecture_of
from stella_jax.models.layers import Dropout
from stella_jax.sharding import REPLICATED, make_mesh, param_spec, shard
from train.batches import TrainBatch
from train.embed import embed_micro_batch
from train.guide import COLUMN as GUIDE
from train.guide import Guide
from train.loss_checks import LossTraits
from train.losses import Embeddings, Loss
from train.remat import remat_policy

Params = dict[str, jax.Array]  # by the names of `EmbeddingModel.params`
Metrics = dict[str, jax.Array]  # () float32 by name


class State(NamedTuple):
    """The training state.

    Attributes:
      step: () int32, number of completed steps.
      params: all parameters by name.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Params
    opt_state: Any


class Gradient(NamedTuple):
    """The loss, the share of rows with a loss other than 0, and the gradient of the trained parameters."""

    loss: jax.Array
    active: jax.Array
    params: Params


@dataclass(frozen=True, slots=True)
class StepConfig:
    """Options of a training step.

    Attributes:
      seed: of dropout.
      dropout: whether to apply the checkpoint's dropout; the adapters' dropout always applies.
      remat: save only a layer's input, and recompute the layer for its gradient.
    """

    seed: int = 42
    dropout: bool = True
    remat: bool = False


def make_step(
    model: EmbeddingModel,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: StepConfig = StepConfig(),
    *,
    trainable: Mapping[str, Any] | None = None,
    learning_rate: optax.Schedule | None = None,
    guide: EmbeddingModel | None = None,
) -> tuple[State, "Step"]:
    """Makes the initial state and the training step, used as `state, metrics = step(state, batch)`.

    Args:
      model: from `stella_jax.load`, with float32 parameters; it does not change. The trained model is
        `model.with_params(state.params)`.
      loss: (embeddings of each column, further columns) -> per-example losses, see `train.losses`.
      optimizer: any optax transformation of a dict of parameters by name, such as "head/kernel". Parameters of layers
        are stacked along a leading axis.
      config: seed, dropout and rematerialization.
      trainable: name -> True or a mask that broadcasts to the parameter; None is `model.trainable`: all parameters, or
        the adapters of a model with adapters. All others get no gradient and no optimizer state, keep their bits, and
        are shared with the model.
      learning_rate: the optimizer's schedule, for the metric of this name.
      guide: a frozen model with the tokenizer of `model`; the loss gets its embeddings as the column "guide" (B, C, G).

    Raises:
      StellaError: an argument has a wrong type, or a name in `trainable` is not a parameter.
    """
    step = Step(model, loss, optimizer, config, trainable=trainable, learning_rate=learning_rate, guide=guide)
    return step.init(model.params()), step


class Step:
    """The jitted training step, compiled once for each shape of a batch; see `make_step` for the arguments.

    Attributes:
      mesh: the model's mesh.
      trainable: names and masks of the trained parameters.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        config: StepConfig,
        *,
        trainable: Mapping[str, Any] | None = None,
        learning_rate: optax.Schedule | None = None,
        guide: EmbeddingModel | None = None,
        loss_name: str = "",
    ):
        check_model(model)
        if guide is not None:
            check_model(guide, "guide")
        _check_functions(loss, optimizer, learning_rate)
        _check_options(config, trainable)
        params = model.params()
        self.trainable = dict.fromkeys(model.trainable, True) if trainable is None else dict(trainable)
        unknown = [name for name in self.trainable if name not in params]
        if unknown:
            raise StellaError(f"trainable: {unknown[0]} is not a parameter; names are such as {next(iter(params))}.")
        self._model = nnx.eval_shape(lambda: model)
        self._dim, self._dropout_rate = model.dims[0], model.dropout_rate
        self._loss, self._loss_name = loss, loss_name or _name_of(loss)
        self._optimizer = optax.with_extra_args_support(optimizer)
        self._config, self._learning_rate = config, learning_rate
        lora = model.encoder.lora
        self._lora_dropout = lora.dropout if lora else 0.0
        self._remat_policy = remat_policy(config.remat, lora.rank if lora else 0)
        self._shardings = {name: leaf.sharding for name, leaf in params.items()}
        mesh: Any = getattr(next(iter(self._shardings.values())), "mesh", None)
        self.mesh: Mesh = mesh or make_mesh()
        self._guide = Guide(guide, self.mesh) if guide else None
        self._traits: dict[Any, LossTraits] = {}  # of each kind of batch
        shardings = self._state_shardings(self._trained(params))
        self._init = jax.jit(self._optimizer.init, out_shardings=shardings.opt_state)
        self._step = jax.jit(self._update, donate_argnums=0, out_shardings=(shardings, None))

    def init(self, params: Params) -> State:
        """The state before the first step, with copies of the trained parameters; frozen ones are shared."""
        trained = jax.tree.map(jnp.copy, self._trained(params))
        return State(shard(self.mesh, np.int32(0)), params | trained, self._init(trained))

    def trained(self, state: State) -> State:
        """The state without frozen parameters, which are those of the model."""
        return state._replace(params=self._trained(state.params))

    def __call__(self, state: State, batch: TrainBatch) -> tuple[State, Metrics]:
        """Makes one optimizer step; donates the old state except for frozen parameters.

        Returns:
          The new state, and metrics (`loss`; `grad_norm`, before the optimizer; `param_norm` and `update_norm`, of
          trained parameters; `active`, the share of rows with a loss other than 0; `learning_rate`, if the schedule is
          known).

        Raises:
          StellaError: the loss does not support this batch or model.
        """
        self.check(batch)
        with jax.set_mesh(self.mesh):
            new, metrics = self._step(*self._arguments(state, batch))
        return new._replace(params=state.params | new.params), metrics

    def lower(self, state: State, batch: TrainBatch) -> Any:
        """Lowers the step for these shapes without running it."""
        self.check(batch)
        with jax.set_mesh(self.mesh):
            return self._step.lower(*self._arguments(state, batch))

    def check(self, batch: TrainBatch) -> None:
        """Tries the loss on random embeddings with a batch's further columns.

        Raises:
          StellaError: see `LossTraits`; or the batch has padding rows and the loss does not skip them.
        """
        kind = _kind(batch)
        if kind not in self._traits:
            columns = {name: np.concatenate(np.asarray(values)) for name, values in batch.columns.items()}
            texts = batch.places.shape[-1]
            if self._guide:
                shape = (batch.weights.size, texts, self._guide.dim)
                columns[GUIDE] = np.random.default_rng(0).standard_normal(shape, np.float32)
            self._traits[kind] = LossTraits(
                self._loss, self._loss_name, texts, self._dim, columns, self._model.normalize
            )
        if not self._traits[kind].skips_padding and not np.asarray(batch.weights).all():
            raise StellaError(
                f'loss {self._loss_name!r}: compares rows but ignores columns["weights"], so a batch of '
                f"{int(np.sum(batch.weights))} rows cannot be padded to {batch.weights.size}; skip rows of weight 0 in "
                "the loss, or pass only full batches (in a recipe: data.drop_last = true) whose size is a multiple of "
                "devices and micro-batches."
            )

    def _arguments(self, state: State, batch: TrainBatch) -> tuple[State, Params, TrainBatch]:
        frozen = {name: leaf for name, leaf in state.params.items() if name not in self.trainable}
        return self.trained(state), frozen, self._on_mesh(batch)

    def _trained(self, params: Params) -> Params:
        return {name: params[name] for name in self.trainable}

    def _state_shardings(self, params: Params) -> State:
        """Optimizer state with a parameter's shape is sharded as the parameter; all else is replicated."""
        replicated: Any = NamedSharding(self.mesh, REPLICATED)

        def of(path: Any, leaf: Any) -> Any:
            names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey) and key.key in params]
            same = bool(names) and params[names[-1]].shape == leaf.shape
            return self._shardings[names[-1]] if same else replicated

        abstract = jax.eval_shape(self._optimizer.init, params)
        shardings: Any = {name: self._shardings[name] for name in params}
        return State(replicated, shardings, jax.tree.map_with_path(of, abstract))

    def _on_mesh(self, batch: TrainBatch) -> TrainBatch:
        """The batch on the mesh, texts and rows sharded over `data` where it divides them, with the guide's column."""

        def over_data(array: np.ndarray) -> jax.Array:
            divided = array.shape[1] % self.mesh.shape["data"] == 0
            return shard(self.mesh, array, P(None, "data") if divided else REPLICATED)

        sharded = jax.tree.map(over_data, batch._replace(tokens=()))
        return self._guide(sharded) if self._guide else sharded

    def _update(self, state: State, frozen: Params, batch: TrainBatch) -> tuple[State, Metrics]:
        trained = state.params
        gradient = self._gradient(trained, frozen, state.step, batch)
        found: Any = self._optimizer.update(gradient.params, state.opt_state, trained, value=gradient.loss)
        updates: Params = {name: _masked(update, self.trainable[name]) for name, update in found[0].items()}
        moved = {name: _moved(trained[name], updates[name], self.trainable[name]) for name in trained}
        metrics = {
            "loss": gradient.loss,
            "grad_norm": optax.tree.norm(gradient.params),
            "param_norm": optax.tree.norm(moved),
            "update_norm": optax.tree.norm(updates),
            "active": gradient.active,
        }
        if self._learning_rate:
            metrics["learning_rate"] = jnp.asarray(self._learning_rate(state.step), jnp.float32)
        return State(state.step + 1, moved, found[1]), metrics

    def _gradient(self, trained: Params, frozen: Params, step: jax.Array, batch: TrainBatch) -> Gradient:
        """The gradient of the whole batch, with one micro-batch in memory at a time.

        A loss that compares rows needs one more forward pass (GradCache, Gao et al. 2021).
        """
        A = len(batch.weights)
        key = jax.random.fold_in(jax.random.key(self._config.seed), step)
        total = jnp.sum(batch.weights)

        def embed(trained: Params, micro_batch: TrainBatch, number: jax.Array) -> Embeddings:
            return self._embed(self._gathered(frozen | trained), micro_batch, jax.random.fold_in(key, number))

        def gradient_of(micro_batch: TrainBatch, number: jax.Array, cotangents: Embeddings | None = None) -> Gradient:
            embeddings, vjp = jax.vjp(lambda trained: embed(trained, micro_batch, number), trained)
            loss = active = jnp.zeros(())
            if cotangents is None:
                loss, active, cotangents = self._loss_gradient(embeddings, micro_batch, total)
            return Gradient(loss, active, vjp(cotangents)[0])

        numbers = jnp.arange(A)
        if A == 1:
            gradient = gradient_of(jax.tree.map(lambda x: x[0], batch), jnp.int32(0))
        elif self._traits[_kind(batch)].decomposable:
            gradient = _summed(gradient_of, batch, numbers)
        else:
            embeddings = jax.lax.map(lambda each: embed(trained, *each), (batch, numbers))
            joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (embeddings, batch.weights, batch.columns))
            whole = batch._replace(weights=joined[1], columns=joined[2])
            loss, active, cotangents = self._loss_gradient(joined[0], whole, total)
            cotangents = jax.tree.map(lambda x, like: x.reshape(like.shape), cotangents, embeddings)
            gradient = _summed(gradient_of, batch, numbers, cotangents)._replace(loss=loss, active=active)
        masked = {name: _masked(leaf, self.trainable[name]) for name, leaf in gradient.params.items()}
        shardings = {name: self._shardings[name] for name in masked}
        return gradient._replace(params=jax.lax.with_sharding_constraint(masked, shardings))

    def _gathered(self, params: Params) -> Params:
        """Gathers parameters that are sharded over `data`, except the layers, which the scan gathers one by one.

        Otherwise the compiler gathers the batch at the word embeddings.
        """
        names = [name for name in params if not name.startswith("encoder/layers/")]
        specs = architecture_of(self._model.encoder.config).specs
        whole = {n: NamedSharding(self.mesh, param_spec(specs, n, params[n].shape, self.mesh)) for n in names}
        return params | jax.lax.with_sharding_constraint({name: params[name] for name in names}, whole)

    def _embed(self, params: Params, micro_batch: TrainBatch, key: jax.Array) -> Embeddings:
        """Embeddings (B, E) of each column."""
        rate = self._dropout_rate if self._config.dropout else 0.0
        drops = rate or self._lora_dropout

        def dropout(group: int) -> Dropout | None:
            return Dropout(rate, jax.random.fold_in(key, group)) if drops else None

        return embed_micro_batch(self._model.with_params(params), micro_batch, dropout, self._remat_policy)

    def _loss_gradient(
        self, embeddings: Embeddings, batch: TrainBatch, total: jax.Array
    ) -> tuple[jax.Array, jax.Array, Embeddings]:
        """A batch's share of the loss, its active share, and the gradient; also of a micro-batch."""
        shares = batch.weights / total

        def loss(embeddings: Embeddings) -> tuple[jax.Array, jax.Array]:
            per_example = self._loss(embeddings, batch.columns | {"weights": batch.weights})
            return jnp.sum(shares * per_example), jnp.sum(shares * (per_example != 0))

        (value, active), gradient = jax.value_and_grad(loss, has_aux=True)(embeddings)
        return value, active, gradient


def _check_functions(loss: Any, optimizer: Any, learning_rate: Any) -> None:
    """Refuses a loss, an optimizer or a schedule of a wrong type."""
    if not callable(loss):
        raise StellaError(f"loss: {short_repr(loss)} is not a function; pass one such as train.losses.triplet.")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise StellaError(
            f"optimizer: {short_repr(optimizer)} is not an optax.GradientTransformation; pass one such as "
            "optax.adamw(2e-5)."
        )
    if learning_rate is not None and not callable(learning_rate):
        raise StellaError(f"learning_rate: {short_repr(learning_rate)} is not a schedule; pass a function of the step.")


def _check_options(config: Any, trainable: Any) -> None:
    """Refuses options of a wrong type."""
    if not isinstance(config, StepConfig):
        raise StellaError(f"config: {short_repr(config)} is not a StepConfig; pass one such as StepConfig(seed=1).")
    if trainable is not None and not (isinstance(trainable, Mapping) and trainable):
        raise StellaError(
            f"trainable: {short_repr(trainable)} is not a mapping from names of parameters to True or a mask; "
            "pass one, or None for all."
        )


def _kind(batch: TrainBatch) -> tuple[Any, ...]:
    """What a loss gets for a row: the number of texts, and the shape of each further column except the guide's."""
    columns = tuple(sorted((name, values.shape[2:]) for name, values in batch.columns.items() if name != GUIDE))
    return batch.places.shape[-1], columns


def _name_of(loss: Any) -> str:
    return getattr(getattr(loss, "func", loss), "__name__", "loss").strip("_")


def _masked(x: jax.Array, mask: Any) -> jax.Array:
    return x if mask is True else jnp.where(mask, x, 0)


def _moved(param: jax.Array, update: jax.Array, mask: Any) -> jax.Array:
    moved: Any = optax.apply_updates(param, update)
    return moved if mask is True else jnp.where(mask, moved, param)  # adding 0 would turn -0 into 0


def _summed(gradient: Callable[..., Gradient], *inputs: Any) -> Gradient:
    """The sum of the gradients of all micro-batches, computed one after the other."""
    first = jax.tree.map(lambda x: x[0], inputs)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, *first))

    def add(total: Gradient, each: Any) -> tuple[Gradient, None]:
        return jax.tree.map(jnp.add, total, gradient(*each)), None

    return jax.lax.scan(add, zero, inputs)[0]
