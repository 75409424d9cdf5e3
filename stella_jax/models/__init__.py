"""Architectures: one file each, which ends with one record for the rest of the library."""

from collections.abc import Mapping
from typing import Any

from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.models.architecture import Architecture
from stella_jax.models.new import NEW
from stella_jax.models.qwen2 import QWEN2

_architectures = [NEW, QWEN2]


def architectures() -> tuple[Architecture, ...]:
    """All architectures that a checkpoint can have."""
    return tuple(_architectures)


def register(architecture: Architecture) -> None:
    """Adds an architecture."""
    _architectures.append(architecture)


def class_name(fields: Mapping[str, Any]) -> Any:
    """The class name of the model, from config.json."""
    named = fields.get("architectures")
    return named[0] if isinstance(named, list) and named else None


def find_architecture(fields: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.json.

    Raises:
      StellaError: it is not supported, or its model_type belongs to another architecture.
    """
    name = class_name(fields)
    known = {name: each for each in _architectures for name in each.class_names}
    known |= {name: each for each in _architectures if each.scorer for name in each.scorer.class_names}
    if not isinstance(name, str) or name not in known:
        raise StellaError(f"config.json: unsupported architecture {short_repr(name)}; supported: {join_words(known)}.")
    architecture = known[name]
    if fields.get("model_type") not in architecture.model_types:
        raise StellaError(
            f"config.json: unsupported model_type {short_repr(fields.get('model_type'))} for {name}; supported: "
            f"{join_words(architecture.model_types)}."
        )
    return architecture


def architecture_of(config: EncoderConfig) -> Architecture:
    """The architecture that a config belongs to."""
    return next(each for each in _architectures if each.config is type(config))
