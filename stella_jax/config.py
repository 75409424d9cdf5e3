"""Numbers that define an encoder's function, and reading them from a checkpoint's config.json.

Each architecture adds its own fields to `EncoderConfig`; what all of them read alike stands here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from stella_jax.errors import StellaError, short_repr

# Smallest and largest sensible value of a size: far above every published checkpoint, far below what hangs a machine.
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

# The same for the other numbers; outside, float32 would overflow or the function be another one.
RANGES = {
    "layer_norm_eps": (1e-30, 1.0),
    "rms_norm_eps": (1e-30, 1.0),
    "rope_theta": (1.0, 1e12),
    "factor": (0.01, 10_000.0),
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding with inverse frequencies `1 / (theta^(2j/H) * divisor)`, j < H/2, H the head dimension.

    Both published spellings reduce to it. "ntk" scaling by f (original config.json) is theta*f with the divisor
    f^(2/H); "linear" scaling (newer `rope_parameters`) states theta and divisor outright.
    """

    theta: float
    divisor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig(ABC):
    """Sizes and constants that every encoder has; the names are those of config.json."""

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
          StellaError: names the first field that is missing, malformed, absurd, or not implemented.
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
      implemented: fields with the one value that is implemented.
      pad_token: the field that holds the id of the padding token.

    Raises:
      StellaError: names the first field that is missing, malformed, absurd or not implemented.
    """
    refuse_unimplemented(fields, implemented)
    found = read_sizes(fields, sizes)
    return {
        **found,
        "pad_token_id": read_token_id(fields, pad_token, found["vocab_size"]),
        "rope": read_rope(fields, found["hidden_size"] // found["num_attention_heads"]),
    }


def refuse_unimplemented(fields: Mapping[str, Any], implemented: Mapping[str, Any]) -> None:
    """Refuses a field of which one value is implemented and another one given; by name, so that none is missed."""
    for name, only in implemented.items():
        if fields.get(name, only) != only:
            raise StellaError(
                f"config.json: {name} = {short_repr(fields[name])} is not implemented; only {short_repr(only)} is."
            )


def read_sizes(fields: Mapping[str, Any], names: Iterable[str] = COMMON_SIZES) -> dict[str, int]:
    """Sizes by name; the heads divide the hidden size into even parts."""
    sizes = {name: _size(fields, name) for name in names}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if hidden % heads or (hidden // heads) % 2:
        raise StellaError(
            f"config.json: hidden_size {hidden} over num_attention_heads {heads} must be an even whole number per head."
        )
    return sizes


def read_token_id(fields: Mapping[str, Any], name: str, vocab_size: int) -> int:
    """The id in this field, 0 where it is missing."""
    value = fields.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise StellaError(f"config.json: {name} = {short_repr(value)} must be an id below vocab_size {vocab_size}.")
    return value


def read_number(fields: Mapping[str, Any], name: str, where: str = "") -> float:
    """The number in this field, which is one of `RANGES`; `where` stands before its name in an error."""
    low, high = RANGES[name]
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise StellaError(
            f"config.json: {where}{name} = {short_repr(value)} must be a number from {low:g} to {high:g}."
        )
    return float(value)


def read_rope(fields: Mapping[str, Any], head_dim: int) -> Rope:
    """`rope_parameters`, or where there are none `rope_theta` and `rope_scaling`."""
    if fields.get("rope_parameters") is not None:
        return _rope_from_parameters(fields["rope_parameters"])
    theta = read_number(fields, "rope_theta")
    scaling = fields.get("rope_scaling")
    if scaling is None:
        return Rope(theta)
    if not isinstance(scaling, Mapping) or scaling.get("type", scaling.get("rope_type")) != "ntk":
        raise StellaError(
            f"config.json: rope_scaling = {short_repr(scaling)} is not implemented; null and type 'ntk' are."
        )
    if scaling.get("mixed_b") is not None:
        raise StellaError(
            f"config.json: rope_scaling mixed_b = {short_repr(scaling['mixed_b'])} is not implemented; only null is."
        )
    factor = read_number(scaling, "factor", "rope_scaling.")
    return Rope(theta * factor, factor ** (2 / head_dim))


def _size(fields: Mapping[str, Any], name: str) -> int:
    low, high = SIZES[name]
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise StellaError(f"config.json: {name} = {short_repr(value)} must be a whole number from {low} to {high}.")
    return value


def _rope_from_parameters(parameters: Any) -> Rope:
    kind = parameters.get("rope_type", "default") if isinstance(parameters, Mapping) else None
    if kind not in ("default", "linear"):
        raise StellaError(
            f"config.json: rope_parameters = {short_repr(parameters)} is not implemented; "
            "types 'default' and 'linear' are."
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise StellaError("config.json: rope_parameters.partial_rotary_factor is not implemented; only 1.0 is.")
    theta = read_number(parameters, "rope_theta", "rope_parameters.")
    if kind == "default":
        return Rope(theta)
    return Rope(theta, read_number(parameters, "factor", "rope_parameters."))
