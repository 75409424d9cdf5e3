"""AdamW, by name: what trains, what decays, at which rate; the schedule and the clipping of transformers' trainer.

A name is that of a parameter, as in "encoder/embeddings/word/embedding" or "head/kernel"; those of layers carry the
layer's number, "encoder/layers/23/mlp/down/kernel". Patterns are those of the shell, and `*` crosses slashes.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stella_jax.errors import StellaError, shown
from train.params import STACKED, Params

Schedule = Literal["cosine", "linear", "constant"]

# Whether weight decay holds for a leaf of this last name.
DECAYED = {"kernel": True, "embedding": True, "scale": False, "bias": False}

# Added to the norm that gradients are clipped by, as torch does.
CLIP_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Settings.

    Attributes:
      learning_rate: the peak, reached after the warm-up.
      warmup_ratio: share of all steps in which the rate climbs from 0.
      max_grad_norm: gradients are scaled down to this global norm; 0 leaves them.
      train_only: patterns of what trains; () is everything.
      freeze: patterns of what does not.
      learning_rates: (pattern, peak) pairs for what has a peak of its own; the last that fits wins.
    """

    learning_rate: float = 2e-5
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    train_only: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    learning_rates: tuple[tuple[str, float], ...] = ()
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8


class Moments(NamedTuple):
    """Running means of the gradient and of its square, of what trains."""

    mean: Params
    square: Params


class Norms(NamedTuple):
    """Global norms: of the gradient before clipping, of what trains after the update, and of the update."""

    gradient: jax.Array
    params: jax.Array
    update: jax.Array


def learning_rates(optimizer: Optimizer, steps: int) -> np.ndarray:
    """The learning rate of each of `steps` steps, (steps,) float32; the first is 0 where there is a warm-up.

    As transformers' schedules give it: float64, rounded once.
    """
    warmup = math.ceil(optimizer.warmup_ratio * steps)
    step = np.arange(steps, dtype=np.float64)
    progress = (step - warmup) / max(1, steps - warmup)
    after = {
        "cosine": 0.5 * (1 + np.cos(np.pi * progress)),
        "linear": 1 - progress,
        "constant": np.ones(steps),
    }
    if optimizer.schedule not in after:
        raise StellaError(f"optimizer.schedule {shown(optimizer.schedule)} is unknown; {', '.join(after)} are.")
    factor = np.where(step < warmup, step / max(1, warmup), after[optimizer.schedule])
    return (optimizer.learning_rate * factor).astype(np.float32)


def rates(optimizer: Optimizer, params: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """What the learning rate of each trained leaf is multiplied by: a number, or (L, 1, ...) where layers differ.

    0 stands for layers that are frozen; a leaf all frozen is left out.

    Raises:
      StellaError: a pattern fits no parameter, nothing trains, or a leaf is of no known kind.
    """
    names = {leaf: _names(leaf, array.shape) for leaf, array in params.items()}
    _check_patterns(optimizer, [name for group in names.values() for name in group])
    found = {}
    for leaf, array in params.items():
        decays(leaf)
        each = np.array([_rate(optimizer, name) for name in names[leaf]], np.float32)
        if each.any():
            same = (each == each[0]).all()
            found[leaf] = each[0] if same else each.reshape(-1, *[1] * (array.ndim - 1))
    if not found:
        raise StellaError(
            f"nothing is left to train: optimizer.train_only {list(optimizer.train_only)} and optimizer.freeze "
            f"{list(optimizer.freeze)} exclude every parameter."
        )
    return found


def decays(leaf: str) -> bool:
    """Whether weight decay holds for a leaf; biases and norms are free of it."""
    last = leaf.rpartition("/")[2]
    if last not in DECAYED:
        raise StellaError(f"parameter {leaf} is of no known kind, so whether it decays is not known.")
    return DECAYED[last]


def zero_moments(params: Params) -> Moments:
    """Moments of what trains, before the first step, where the parameters lie."""
    return Moments(*(jax.tree.map(jnp.zeros_like, params) for _ in range(2)))


def adamw(
    optimizer: Optimizer,
    relative: Mapping[str, np.ndarray],
    params: Params,
    gradient: Params,
    moments: Moments,
    step: jax.Array,
    learning_rate: jax.Array,
) -> tuple[Params, Moments, Norms]:
    """One update of what trains.

    Args:
      relative: from `rates`.
      step: () int32, updates made so far.
      learning_rate: () float32, of this step.

    Reference: Loshchilov and Hutter 2019, as in torch.optim.AdamW: the decay does not pass through the moments.
    """
    gradient = {leaf: _trained(g, relative[leaf]) for leaf, g in gradient.items()}
    norm = global_norm(gradient.values())
    if optimizer.max_grad_norm:
        clip = jnp.minimum(1.0, optimizer.max_grad_norm / (norm + CLIP_EPSILON))
        gradient = {leaf: g * clip for leaf, g in gradient.items()}
    mean = {leaf: _average(optimizer.b1, moments.mean[leaf], g) for leaf, g in gradient.items()}
    square = {leaf: _average(optimizer.b2, moments.square[leaf], g * g) for leaf, g in gradient.items()}
    mean_bias, square_bias = (_bias(b, step) for b in (optimizer.b1, optimizer.b2))
    updates = {}
    for leaf, value in params.items():
        update = (mean[leaf] / mean_bias) / (jnp.sqrt(square[leaf] / square_bias) + optimizer.epsilon)
        if optimizer.weight_decay and decays(leaf):
            update = update + optimizer.weight_decay * value
        updates[leaf] = -learning_rate * relative[leaf] * update
    # A frozen layer is not even added 0 to, which would turn -0 into 0.
    new = {leaf: jnp.where(relative[leaf] > 0, value + updates[leaf], value) for leaf, value in params.items()}
    return new, Moments(mean, square), Norms(norm, global_norm(new.values()), global_norm(updates.values()))


def global_norm(arrays: Iterable[jax.Array]) -> jax.Array:
    """The Euclidean norm of all numbers together."""
    return jnp.sqrt(sum((jnp.sum(array * array) for array in arrays), jnp.zeros(())))


def _average(decay: float, old: jax.Array, new: jax.Array) -> jax.Array:
    return decay * old + (1 - decay) * new


def _bias(decay: float, step: jax.Array) -> jax.Array:
    """1 - decay^(step + 1), without the 1e-5 that float32 would lose to cancellation in the first steps."""
    return -jnp.expm1((step + 1).astype(jnp.float32) * math.log(decay))


def _trained(gradient: jax.Array, relative: np.ndarray) -> jax.Array:
    return gradient if relative.all() else jnp.where(relative > 0, gradient, 0.0)


def _names(leaf: str, shape: tuple[int, ...]) -> list[str]:
    """The names that patterns see: one a layer where layers are stacked."""
    if not leaf.startswith(STACKED):
        return [leaf]
    return [f"{STACKED}{layer}/{leaf.removeprefix(STACKED)}" for layer in range(shape[0])]


def _rate(optimizer: Optimizer, name: str) -> float:
    def fits(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    if (optimizer.train_only and not fits(optimizer.train_only)) or fits(optimizer.freeze):
        return 0.0
    own = [peak for pattern, peak in optimizer.learning_rates if fits([pattern])]
    return own[-1] / optimizer.learning_rate if own else 1.0


def _check_patterns(optimizer: Optimizer, names: list[str]) -> None:
    settings = {
        "train_only": optimizer.train_only,
        "freeze": optimizer.freeze,
        "learning_rates": [pattern for pattern, _ in optimizer.learning_rates],
    }
    for setting, patterns in settings.items():
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise StellaError(
                    f"optimizer.{setting}: {shown(pattern)} fits no parameter; names are such as {names[0]}, "
                    f"{names[len(names) // 2]} and {names[-1]}."
                )
