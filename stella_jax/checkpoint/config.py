"""The numbers that define an encoder, read from a checkpoint's config.json.

Each architecture adds its own fields to `EncoderConfig`; this file reads the fields that all of them have.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from stella_jax.errors import StellaError, short_repr

# Smallest and largest accepted value of a size: far above every published checkpoint, far below what hangs a machine.
SIZES = {
    "vocab_size": (1, 10_000_000),
    "hidden_size": (2, 65_536),
    "num_hidden_layers": (1, 1_000),
    "num_attention_heads": (1, 1_024),
    "num_key_value_heads": (1, 1_024),
    "intermediate_size": (1, 1_000_000),
    "max_position_embeddings": (1, 1_048_576),
    "type_vocab_size": (0, 1_000),
}
COMMON_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)

# The same for the other numbers. Outside of these, float32 would overflow, or the result would be meaningless.
RANGES = {
    "layer_norm_eps": (1e-30, 1.0),
    "rms_norm_eps": (1e-30, 1.0),
    "rope_theta": (1.0, 1e12),
    "factor": (0.01, 10_000.0),
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding with inverse frequencies `1 / (theta^(2j/H) * divisor)`, j < H/2, H the head dimension.

    Both published spellings can be written this way. "ntk" scaling by f (original config.json) is theta*f with the
    divisor f^(2/H); "linear" scaling (newer `rope_parameters`) states theta and divisor directly.
    """

    theta: float
    divisor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig(ABC):
    """Sizes and constants that every encoder has, under their names in config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    pad_token_id: int
    rope: Rope

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    @abstractmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Reads the fields of a config.json, old or new spelling.

        Raises:
          StellaError: names the first field that is missing, malformed, out of range or not supported.
        """

    @abstractmethod
    def native_json(self) -> dict[str, Any]:
        """The fields of a config.json that transformers' own class reads, without remote code."""


def read_common_fields(
    fields: Mapping[str, Any],
    sizes: Iterable[str],
    implemented: Mapping[str, Any],
    pad_token: str = "pad_token_id",
) -> dict[str, Any]:
    """The fields that `EncoderConfig` has, and further sizes.

    Args:
      sizes: names of all sizes to read.
      implemented: fields that must have one value, and that value.
      pad_token: the field that holds the id of the padding token.

    Raises:
      StellaError: names the first field that is missing, malformed, out of range or not supported.
    """
    refuse_unimplemented(fields, implemented)
    found = read_sizes(fields, sizes)
    return {
        **found,
        "pad_token_id": read_token_id(fields, pad_token, found["vocab_size"]),
        "rope": read_rope(fields, found["hidden_size"] // found["num_attention_heads"]),
    }


def refuse_unimplemented(fields: Mapping[str, Any], implemented: Mapping[str, Any]) -> None:
    """Refuses fields whose value is not the one that is implemented."""
    for name, only in implemented.items():
        if fields.get(name, only) != only:
            raise StellaError(
                f"config.json: {name} = {short_repr(fields[name])} is not supported; supported: {short_repr(only)}."
            )


def read_sizes(fields: Mapping[str, Any], names: Iterable[str] = COMMON_SIZES) -> dict[str, int]:
    """Sizes by name; the hidden size must be divisible into heads of even size."""
    sizes = {name: _size(fields, name) for name in names}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if hidden % heads or (hidden // heads) % 2:
        raise StellaError(
            f"config.json: hidden_size {hidden} divided by num_attention_heads {heads} must be an even whole number."
        )
    return sizes


def read_token_id(fields: Mapping[str, Any], name: str, vocab_size: int) -> int:
    """The token id in this field; 0 if the field is missing."""
    value = fields.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise StellaError(
            f"config.json: {name} must be a token id below vocab_size {vocab_size}, not {short_repr(value)}."
        )
    return value


def read_number(fields: Mapping[str, Any], name: str, where: str = "") -> float:
    """The number in this field, which must be in its range of `RANGES`; errors put `where` before its name."""
    low, high = RANGES[name]
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise StellaError(
            f"config.json: {where}{name} must be a number from {low:g} to {high:g}, not {short_repr(value)}."
        )
    return float(value)


def read_rope(fields: Mapping[str, Any], head_dim: int) -> Rope:
    """Reads `rope_parameters`, or else `rope_theta` and `rope_scaling`."""
    if fields.get("rope_parameters") is not None:
        return _rope_from_parameters(fields["rope_parameters"])
    theta = read_number(fields, "rope_theta")
    scaling = fields.get("rope_scaling")
    if scaling is None:
        return Rope(theta)
    if not isinstance(scaling, Mapping) or scaling.get("type", scaling.get("rope_type")) != "ntk":
        raise StellaError(
            f"config.json: rope_scaling = {short_repr(scaling)} is not supported; supported: null and type 'ntk'."
        )
    if scaling.get("mixed_b") is not None:
        raise StellaError(
            f"config.json: rope_scaling.mixed_b = {short_repr(scaling['mixed_b'])} is not supported; supported: null."
        )
    factor = read_number(scaling, "factor", "rope_scaling.")
    return Rope(theta * factor, factor ** (2 / head_dim))


def _size(fields: Mapping[str, Any], name: str) -> int:
    low, high = SIZES[name]
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise StellaError(f"config.json: {name} must be a whole number from {low} to {high}, not {short_repr(value)}.")
    return value


def _rope_from_parameters(parameters: Any) -> Rope:
    kind = parameters.get("rope_type", "default") if isinstance(parameters, Mapping) else None
    if kind not in ("default", "linear"):
        raise StellaError(
            f"config.json: rope_parameters = {short_repr(parameters)} is not supported; supported: rope_type 'default' "
            "and 'linear'."
        )
    if (partial := parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise StellaError(
            f"config.json: rope_parameters.partial_rotary_factor = {short_repr(partial)} is not supported; "
            "supported: 1.0."
        )
    theta = read_number(parameters, "rope_theta", "rope_parameters.")
    if kind == "default":
        return Rope(theta)
    return Rope(theta, read_number(parameters, "factor", "rope_parameters."))
