"""A recipe's optimizer, composed of optax's parts: clipping, an optimizer by its optax name, schedule, masks.

Parameters go by name, as in "encoder/embeddings/word/embedding" or "head/kernel"; those of layers, which are stacked,
are matched as if each layer had its own, "encoder/layers/23/mlp/down/kernel". Patterns are those of the shell, and `*`
crosses slashes.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stella_jax.errors import StellaError, first_line, join_words, short_repr
from stella_jax.names import ENCODER, Weight
from train.recipe import OptimizerSection

STACKED = "encoder/layers/"

# Whether weight decay holds for a parameter of this last name.
DECAYED = {"kernel": True, "embedding": True, "scale": False, "bias": False}

# Optimizers of optax that training cannot use, by how their names begin.
UNSUPPORTED = {
    "lbfgs": "calls the loss itself",
    "sophia": "calls the loss itself",
    "schedule_free": "evaluates the model at other parameters than it trains",
}

Shapes = Mapping[str, Any]  # name -> an array, or what has its shape


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What `make_step` takes.

    Attributes:
      transformation: the whole chain.
      trainable: name -> True, or (L, 1, ...) bool where only some layers of a stacked parameter train.
      learning_rate: step () int32 -> the peak learning rate's course.
    """

    transformation: optax.GradientTransformation
    trainable: dict[str, Any]
    learning_rate: optax.Schedule


def from_recipe(section: OptimizerSection, params: Shapes, steps: int) -> Optimizer:
    """The optimizer of a recipe for these parameters and so many steps.

    Raises:
      StellaError: a pattern fits no parameter, nothing trains, no such optimizer, or optax refuses its arguments.
    """
    rates = learning_rate_multipliers(section, params)
    trained = {name: params[name] for name in rates}
    learning_rate = schedule(section.schedule, section.learning_rate, steps, section.warmup_ratio)
    parts = [optax.clip_by_global_norm(section.max_grad_norm)] if section.max_grad_norm else []
    is_fixed = section.schedule == "constant" and _warmup_steps(steps, section.warmup_ratio) == 0
    given = section.learning_rate if is_fixed else learning_rate
    parts += [named(section.name, given, section.weight_decay, section.args, trained)]
    if any((rate != 1).any() for rate in rates.values()):
        parts += [scale_by_multipliers(rates)]
    trainable = {name: True if rate.all() else rate > 0 for name, rate in rates.items()}
    chain = optax.chain(*parts)
    _try(section.name, chain, trained)
    return Optimizer(chain, trainable, learning_rate)


def schedule(name: str, peak: float, steps: int, warmup_ratio: float = 0.0) -> optax.Schedule:
    """A learning rate that rises from 0 to its peak, then falls to 0 as "cosine" or "linear", or stays ("constant").

    Args:
      steps: of the whole training; the warm-up is the first ceil(warmup_ratio * steps) of them.

    Reference: the schedules of transformers' trainer.
    """
    warmup = _warmup_steps(steps, warmup_ratio)
    rest = max(1, steps - warmup)
    course = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[name]
    if not warmup:
        return course
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), course], [warmup])


def _warmup_steps(steps: int, warmup_ratio: float) -> int:
    return math.ceil(warmup_ratio * steps)


def names() -> list[str]:
    """The optimizers that a recipe can name: those of optax, then those of optax.contrib."""
    return [name for name in _functions() if not name.startswith(tuple(UNSUPPORTED))]


def _functions() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """What makes an optimizer of a learning rate alone, by name; `scale_by_*` are parts of one."""
    every = {name: function for module in (optax.contrib, optax) for name, function in vars(module).items()}
    every = {name: function for name, function in every.items() if not name.startswith(("_", "scale_by_"))}
    return {name: every[name] for name in sorted(every, key=_order) if _makes_an_optimizer(every[name])}


def _order(name: str) -> tuple[bool, str]:
    return name in vars(optax.contrib), name


def _makes_an_optimizer(function: Any) -> bool:
    if not _takes(function, "learning_rate"):
        return False
    parameters = inspect.signature(function).parameters.items()
    return all(key == "learning_rate" or parameter.default is not parameter.empty for key, parameter in parameters)


def named(
    name: str, learning_rate: optax.ScalarOrSchedule, weight_decay: float, args: Mapping[str, Any], params: Shapes
) -> optax.GradientTransformation:
    """An optimizer of optax or optax.contrib by its name.

    Weight decay spares biases and norms. muon treats the layers' kernels as matrices, each layer, and query, key and
    value, by itself; heads and embeddings go by its Adam, which does not decay them.

    Args:
      args: further arguments of optax's function.
      params: what it will train.

    Raises:
      StellaError: there is none of this name, it has no weight decay that spares biases, it takes no schedule, or
        optax refuses the arguments.
    """
    function = _find(name)
    if callable(learning_rate) and not _takes_a_schedule(function):
        raise StellaError(
            f"optimizer.schedule: optax's {name} takes a fixed learning rate; set optimizer.schedule = "
            '"constant" and optimizer.warmup_ratio = 0.'
        )
    mask = next((key for key in ("weight_decay_mask", "mask") if _takes(function, key)), None)
    given: dict[str, Any] = {mask: {name: decays(name) for name in params}} if mask else {}
    if _takes(function, "weight_decay"):
        given["weight_decay"] = weight_decay
    if weight_decay and not (mask and "weight_decay" in given):
        lacks = "weight decay that spares biases and norms" if "weight_decay" in given else "weight decay"
        raise StellaError(f"optimizer.weight_decay: optax's {name} has no {lacks}; set it to 0.")
    if _takes(function, "muon_weight_dimension_numbers"):
        given["muon_weight_dimension_numbers"] = {name: matrix_axes(name) for name in params}
    _check_args(name, function, args, given)
    try:
        return function(learning_rate, **given, **args)
    except Exception as error:  # whatever optax raises about an argument
        raise _refused(name, error) from error


def decays(name: str) -> bool:
    """Whether weight decay holds for a parameter; biases and norms are free of it.

    Raises:
      StellaError: it is of no known kind.
    """
    last = name.rpartition("/")[2]
    if last not in DECAYED:
        raise StellaError(f"parameter {name} is of no known kind, so whether it decays is not known.")
    return DECAYED[last]


def matrix_axes(name: str) -> optax.contrib.MuonDimensionNumbers | None:
    """For muon: which axes of a layers' kernel are a matrix's inputs and outputs, the others are batches of matrices.

    None for all other parameters.
    """
    weight = next((w for w in ENCODER if f"encoder/{w.flax}" == name), None)
    if weight is None or not weight.stacked or not name.endswith("kernel"):
        return None
    outputs, inputs = weight.torch_axes.split()
    return optax.contrib.MuonDimensionNumbers(_positions(weight, inputs), _positions(weight, outputs.strip("23")))


def _positions(weight: Weight, letters: str) -> tuple[int, ...]:
    return tuple(1 + i for i, axis in enumerate(weight.flax_axes.replace(" ", "")) if axis in letters)


def scale_by_multipliers(multipliers: Mapping[str, np.ndarray]) -> optax.GradientTransformation:
    """Multiplies each parameter's update by a number, or by one a layer, (L, 1, ...)."""

    def scale(updates: Any, _: Any) -> dict[str, jax.Array]:
        return {name: update * jnp.asarray(multipliers[name], update.dtype) for name, update in updates.items()}

    return optax.stateless(scale)


def learning_rate_multipliers(section: OptimizerSection, params: Shapes) -> dict[str, np.ndarray]:
    """What the learning rate of each trained parameter is multiplied by: (1, ...), or (L, 1, ...) where layers differ.

    0 stands for layers that are frozen; a parameter all frozen is left out.

    Raises:
      StellaError: a pattern fits no parameter, or nothing trains.
    """
    layers = {name: _layer_names(name, array.shape) for name, array in params.items()}
    _check_patterns(section, [name for group in layers.values() for name in group])
    found = {}
    for name, array in params.items():
        each = np.array([_multiplier(section, layer) for layer in layers[name]], np.float32)
        each = each[:1] if (each == each[0]).all() else each
        if each.any():
            found[name] = each.reshape(-1, *[1] * (len(array.shape) - 1))
    if not found:
        raise StellaError(
            f"nothing is left to train: optimizer.train_only {list(section.train_only)} and optimizer.freeze "
            f"{list(section.freeze)} exclude every parameter."
        )
    return found


def _find(name: str) -> Callable[..., optax.GradientTransformation]:
    functions, known = _functions(), names()
    if name in known:
        return functions[name]
    nearest = f"{', '.join(get_close_matches(name.lower(), known, n=12, cutoff=0.0))} or another of optax"
    if name in functions:
        reason = next(reason for start, reason in UNSUPPORTED.items() if name.startswith(start))
        raise StellaError(f"optimizer.name: {name} cannot be used here, as it {reason}; choose {nearest}.")
    raise StellaError(f"optimizer.name: unknown optimizer {short_repr(name)}; choose {nearest}.")


def _takes(function: Any, parameter: str) -> bool:
    return inspect.isfunction(function) and parameter in inspect.signature(function).parameters


def _takes_a_schedule(function: Callable[..., Any]) -> bool:
    """By its annotation, a union with a callable; one that says nothing is taken to."""
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
    """What a value must be, where its default is a bool or a number and it is not; "" where it may be right.

    optax takes any text for true, and a list for a number until it multiplies by it.
    """
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "a number" if isinstance(default, int | float) and not is_number else ""


def _try(name: str, chain: optax.GradientTransformation, params: Shapes) -> None:
    """Runs the optimizer on shapes, where a wrong argument shows that optax did not look at before.

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
        raise _refused(name, error) from error
    for key, leaf in abstract.items():
        if updates[key].shape != leaf.shape:
            raise StellaError(
                f"optimizer.name: the updates of optax's {name} for {key} have the shape {updates[key].shape}, not "
                f"{leaf.shape}; choose another optimizer."
            )


def _refused(name: str, error: Exception) -> StellaError:
    return StellaError(
        f"optimizer.args: optax's {name} refuses them ({type(error).__name__}: {first_line(error)[:200]})."
    )


def _layer_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """The names that patterns see: one a layer where layers are stacked."""
    if not name.startswith(STACKED):
        return [name]
    return [f"{STACKED}{layer}/{name.removeprefix(STACKED)}" for layer in range(shape[0])]


def _multiplier(section: OptimizerSection, name: str) -> float:
    def fits(patterns: Collection[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    if (section.train_only and not fits(section.train_only)) or fits(section.freeze):
        return 0.0
    own = [peak for pattern, peak in section.learning_rates.items() if fits([pattern])]
    return own[-1] / section.learning_rate if own else 1.0


def _check_patterns(section: OptimizerSection, names: list[str]) -> None:
    settings = {
        "train_only": section.train_only,
        "freeze": section.freeze,
        "learning_rates": section.learning_rates,
    }
    for setting, patterns in settings.items():
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise StellaError(
                    f"optimizer.{setting}: {short_repr(pattern)} fits no parameter; names are such as {names[0]}, "
                    f"{names[len(names) // 2]} and {names[-1]}."
                )
