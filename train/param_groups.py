"""Groups of parameters by name: what trains, at which learning rate, what decays, and which are matrices.

Names are such as "encoder/embeddings/word/embedding" or "head/kernel". Layers are stacked in one parameter, but
patterns match one name a layer, "encoder/layers/23/mlp/down/kernel". They are shell patterns; `*` also matches slashes.
"""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stella_jax.checkpoint.weight_map import WeightSpec
from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.models.architecture import Architecture
from train.sections import OptimizerSection

STACKED = "encoder/layers/"

# Whether weight decay applies, by the last part of the name.
DECAYED = {"kernel": True, "embedding": True, "lora_a": True, "lora_b": True, "scale": False, "bias": False}

Shapes = Mapping[str, Any]  # name -> an array or a ShapeDtypeStruct


def learning_rate_multipliers(section: OptimizerSection, params: Shapes) -> dict[str, np.ndarray]:
    """Learning-rate multiplier of each trained parameter: (1, ...), or (L, 1, ...) if its layers differ.

    Frozen layers have 0; parameters that are frozen as a whole are left out.

    Raises:
      StellaError: a pattern matches no parameter, or nothing trains.
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
            f"optimizer: train_only = {list(section.train_only)} and freeze = {list(section.freeze)} exclude every "
            "parameter; change them."
        )
    return found


def scale_by_multipliers(multipliers: Mapping[str, np.ndarray]) -> optax.GradientTransformation:
    """Scales each parameter's update by its multiplier, (1, ...) or (L, 1, ...)."""

    def scale(updates: Any, _: Any) -> dict[str, jax.Array]:
        return {name: update * jnp.asarray(multipliers[name], update.dtype) for name, update in updates.items()}

    return optax.stateless(scale)


def decays(name: str) -> bool:
    """Whether weight decay applies to a parameter; not to biases and norms.

    Raises:
      StellaError: the name is unknown.
    """
    last = name.rpartition("/")[2]
    if last not in DECAYED:
        raise StellaError(
            f"parameter {name}: unknown kind, so weight decay is undefined; its name must end in one of "
            f"{join_words(DECAYED)}."
        )
    return DECAYED[last]


def matrix_axes(name: str, architecture: Architecture) -> optax.contrib.MuonDimensionNumbers | None:
    """muon's input and output axes of a layer's kernel or an adapter; other axes are batches of matrices.

    None for all other parameters.
    """
    if name.startswith(STACKED) and name.endswith(("/lora_a", "/lora_b")):
        return optax.contrib.MuonDimensionNumbers((1,), (2,))
    weight = next((weight for weight in architecture.weights if f"encoder/{weight.flax}" == name), None)
    if weight is None or not weight.stacked or not name.endswith("kernel"):
        return None
    outputs, inputs = weight.torch_axes.split()
    return optax.contrib.MuonDimensionNumbers(_positions(weight, inputs), _positions(weight, outputs.strip("23")))


def _positions(weight: WeightSpec, letters: str) -> tuple[int, ...]:
    return tuple(1 + i for i, axis in enumerate(weight.flax_axes.replace(" ", "")) if axis in letters)


def _layer_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """The names that patterns are matched with: one a layer for stacked parameters."""
    if not name.startswith(STACKED):
        return [name]
    return [f"{STACKED}{layer}/{name.removeprefix(STACKED)}" for layer in range(shape[0])]


def _multiplier(section: OptimizerSection, name: str) -> float:
    def matches(patterns: Collection[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    if (section.train_only and not matches(section.train_only)) or matches(section.freeze):
        return 0.0
    own = [peak for pattern, peak in section.learning_rates.items() if matches([pattern])]
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
                    f"optimizer.{setting}: {short_repr(pattern)} matches no parameter; names are such as {names[0]}, "
                    f"{names[len(names) // 2]} and {names[-1]}."
                )
