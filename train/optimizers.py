"""A recipe's optimizer, composed from optax: gradient clipping, an optimizer by name, schedule and masks."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stella_jax.errors import StellaError, first_line, join_words, short_repr
from stella_jax.models.architecture import Architecture
from train.adamw import adamw
from train.param_groups import Shapes, decays, learning_rate_multipliers, matrix_axes, scale_by_multipliers
from train.sections import OptimizerSection

# Prefixes of optax's optimizers that training cannot use, and why.
UNSUPPORTED = {
    "lbfgs": "calls the loss itself",
    "sophia": "calls the loss itself",
    "schedule_free": "evaluates the model at other parameters than it trains",
}


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer for `make_step`.

    Attributes:
      transformation: the whole chain.
      trainable: name -> True, or (L, 1, ...) bool if only some layers of a stacked parameter train.
      learning_rate: the schedule, from step () int32 to the learning rate before multipliers.
    """

    transformation: optax.GradientTransformation
    trainable: dict[str, Any]
    learning_rate: optax.Schedule


def from_recipe(section: OptimizerSection, params: Shapes, steps: int, architecture: Architecture) -> Optimizer:
    """The optimizer of a recipe's table [optimizer], for a loop of your own.

    Examples:
      >>> from stella_jax import load
      >>> from stella_jax.models import architecture_of
      >>> from train import losses, make_step, optimizers
      >>> from train.sections import OptimizerSection
      >>> model = load("tiny")
      >>> section = OptimizerSection(learning_rate=1e-3, freeze=("encoder/embeddings/*",))
      >>> architecture = architecture_of(model.encoder.config)
      >>> optimizer = optimizers.from_recipe(section, model.params(), 100, architecture)
      >>> state, step = make_step(
      ...     model,
      ...     losses.triplet,
      ...     optimizer.transformation,
      ...     trainable=optimizer.trainable,
      ...     learning_rate=optimizer.learning_rate,
      ... )

    Args:
      section: the table, `train.sections.OptimizerSection`.
      params: name -> the parameter, or a ShapeDtypeStruct with its shape and dtype.
      steps: of the whole training, for the schedule.
      architecture: of the model's encoder.

    Raises:
      StellaError: a pattern matches no parameter, nothing trains, there is no such optimizer, or optax rejects its
        arguments.
    """
    multipliers = learning_rate_multipliers(section, params)
    trained = {name: params[name] for name in multipliers}
    learning_rate = schedule(section.schedule, section.learning_rate, steps, section.warmup_ratio)
    parts = [optax.clip_by_global_norm(section.max_grad_norm)] if section.max_grad_norm else []
    is_fixed = section.schedule == "constant" and _warmup_steps(steps, section.warmup_ratio) == 0
    given = section.learning_rate if is_fixed else learning_rate
    parts += [named(section.name, given, section.weight_decay, section.args, trained, architecture)]
    if any((multiplier != 1).any() for multiplier in multipliers.values()):
        parts += [scale_by_multipliers(multipliers)]
    trainable = {name: True if each.all() else each > 0 for name, each in multipliers.items()}
    chain = optax.chain(*parts)
    _try(section.name, chain, trained)
    return Optimizer(chain, trainable, learning_rate)


def schedule(name: str, peak: float, steps: int, warmup_ratio: float = 0.0) -> optax.Schedule:
    """A schedule with linear warm-up to the peak, then "cosine" or "linear" decay to 0, or "constant".

    It is a table computed in float64 and rounded once, as transformers' schedules are; optax's cosine, computed in
    float32, is off by 1e-6 at its end.

    Args:
      name: "cosine", "linear" or "constant".
      peak: the largest learning rate.
      steps: of the whole training.
      warmup_ratio: the warm-up is the first ceil(warmup_ratio * steps) steps.
    """
    warmup = _warmup_steps(steps, warmup_ratio)
    step = np.arange(steps, dtype=np.float64)
    progress = (step - warmup) / max(1, steps - warmup)
    decay = {
        "cosine": 0.5 * (1 + np.cos(np.pi * progress)),
        "linear": 1 - progress,
        "constant": np.ones(steps),
    }[name]
    table = (peak * np.where(step < warmup, step / max(1, warmup), decay)).astype(np.float32)
    return lambda count: jnp.asarray(table)[count]


def _warmup_steps(steps: int, warmup_ratio: float) -> int:
    return math.ceil(warmup_ratio * steps)


def names() -> list[str]:
    """Names of the optimizers that a recipe can use: those of optax, then those of optax.contrib."""
    return [name for name in _functions() if not name.startswith(tuple(UNSUPPORTED))]


def _functions() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """optax's functions by name that need only a learning rate; `scale_by_*` are only parts of optimizers."""
    every = {name: function for module in (optax.contrib, optax) for name, function in vars(module).items()}
    every = {name: function for name, function in every.items() if not name.startswith(("_", "scale_by_"))}
    every["adamw"] = adamw
    return {name: every[name] for name in sorted(every, key=_order) if _makes_an_optimizer(every[name])}


def _order(name: str) -> tuple[bool, str]:
    return name in vars(optax.contrib), name


def _makes_an_optimizer(function: Any) -> bool:
    if not _takes(function, "learning_rate"):
        return False
    parameters = inspect.signature(function).parameters.items()
    return all(key == "learning_rate" or parameter.default is not parameter.empty for key, parameter in parameters)


def named(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    args: Mapping[str, Any],
    params: Shapes,
    architecture: Architecture,
) -> optax.GradientTransformation:
    """An optimizer of optax or optax.contrib by its name.

    Weight decay excludes biases and norms. muon treats each layer's kernels as matrices, and query, key and value
    separately; heads and embeddings use its Adam, without weight decay. What other optimizers compute over a whole
    tensor (lamb's trust ratio, adafactor's clipping) they compute over all layers of a stacked parameter.

    Args:
      name: of optax's function.
      learning_rate: a number or a schedule.
      weight_decay: 0 for none.
      args: further arguments of optax's function.
      params: the trained parameters.
      architecture: of the encoder; it knows which axes of a kernel are inputs and outputs.

    Raises:
      StellaError: there is no such optimizer, its weight decay cannot exclude biases, it takes no schedule, or optax
        rejects the arguments.
    """
    function = _find(name)
    if callable(learning_rate) and not _takes_a_schedule(function):
        raise StellaError(
            f"optimizer.schedule: optax's {name} takes no schedule; set optimizer.schedule = "
            '"constant" and optimizer.warmup_ratio = 0.'
        )
    mask = next((key for key in ("weight_decay_mask", "mask") if _takes(function, key)), None)
    given: dict[str, Any] = {mask: {name: decays(name) for name in params}} if mask else {}
    if _takes(function, "weight_decay"):
        given["weight_decay"] = weight_decay
    if weight_decay and not (mask and "weight_decay" in given):
        lacks = "weight decay that excludes biases and norms" if "weight_decay" in given else "weight decay"
        raise StellaError(f"optimizer.weight_decay: optax's {name} has no {lacks}; set it to 0.")
    if _takes(function, "muon_weight_dimension_numbers"):
        given["muon_weight_dimension_numbers"] = {name: matrix_axes(name, architecture) for name in params}
    _check_args(name, function, args, given)
    try:
        return function(learning_rate, **given, **args)
    except Exception as error:  # whatever optax raises about an argument
        raise _rejected(name, error) from error


def _find(name: str) -> Callable[..., optax.GradientTransformation]:
    functions, known = _functions(), names()
    if name in known:
        return functions[name]
    nearest = ", ".join(get_close_matches(name.lower(), known, n=len(known), cutoff=0.0))
    if name in functions:
        reason = next(reason for start, reason in UNSUPPORTED.items() if name.startswith(start))
        raise StellaError(f"optimizer.name: {name} cannot be used here, as it {reason}; choose {nearest}.")
    raise StellaError(f"optimizer.name: unknown optimizer {short_repr(name)}; choose {nearest}.")


def _takes(function: Any, parameter: str) -> bool:
    return inspect.isfunction(function) and parameter in inspect.signature(function).parameters


def _takes_a_schedule(function: Callable[..., Any]) -> bool:
    """Whether the annotation allows a callable; a missing annotation counts as yes."""
    annotation = inspect.signature(function).parameters["learning_rate"].annotation
    return annotation is inspect.Parameter.empty or any(word in str(annotation) for word in ("Callable", "Schedule"))


def _check_args(name: str, function: Callable[..., Any], args: Mapping[str, Any], given: Collection[str]) -> None:
    parameters = inspect.signature(function).parameters
    known = [key for key in parameters if key != "learning_rate" and key not in given]
    for key, value in args.items():
        if key in ("learning_rate", "weight_decay"):
            raise StellaError(f"optimizer.args.{key}: set optimizer.{key} instead.")
        if key not in known:
            raise StellaError(
                f"optimizer.args: optax's {name} takes no {short_repr(key)}; it takes {join_words(known)}."
            )
        if kind := _wrong_kind(value, parameters[key].default):
            raise StellaError(f"optimizer.args.{key} = {short_repr(value)} must be {kind}, for optax's {name}.")


def _wrong_kind(value: Any, default: Any) -> str:
    """What a value must be if its default is a bool or a number and it is not; else "".

    optax itself takes any string as true, and a list as a number until it multiplies by it.
    """
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "a number" if isinstance(default, int | float) and not is_number else ""


def _try(name: str, chain: optax.GradientTransformation, params: Shapes) -> None:
    """Traces the optimizer on shapes, which finds wrong arguments that optax does not check.

    Raises:
      StellaError: it raises, or its updates do not have the shapes of the parameters.
    """
    abstract = {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in params.items()}

    def once(params: Any) -> Any:
        update = optax.with_extra_args_support(chain).update
        return update(params, chain.init(params), params, value=jnp.zeros(()))[0]

    try:
        updates = jax.eval_shape(once, abstract)
    except Exception as error:  # whatever optax and JAX raise
        raise _rejected(name, error) from error
    for key, leaf in abstract.items():
        if updates[key].shape != leaf.shape:
            raise StellaError(
                f"optimizer.name: updates of optax's {name} for {key} have shape {updates[key].shape}, not "
                f"{leaf.shape}; choose another optimizer."
            )


def _rejected(name: str, error: Exception) -> StellaError:
    return StellaError(
        f"optimizer.args: optax's {name} rejects them ({type(error).__name__}: {first_line(error)[:200]}); fix them."
    )
