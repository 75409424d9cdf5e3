"""The numbers that define the encoder's function, read from a checkpoint's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stella_jax.errors import StellaError, short_repr

ARCHITECTURES = ("NewModel", "GteModel")
MODEL_TYPES = ("new", "gte")

# Fields of which exactly one value is implemented. They are checked by name, so that no other one is taken in silence.
IMPLEMENTED = {
    "hidden_act": "gelu",
    "layer_norm_type": "layer_norm",
    "position_embedding_type": "rope",
    "pack_qkv": True,
    "logn_attention_scale": False,
    "is_decoder": False,
    "add_cross_attention": False,
}

# Smallest and largest sensible value of a size: far above every published checkpoint, far below what hangs a machine.
SIZES = {
    "vocab_size": (1, 10_000_000),
    "hidden_size": (2, 65_536),
    "num_hidden_layers": (1, 1_000),
    "num_attention_heads": (1, 1_024),
    "intermediate_size": (1, 1_000_000),
    "max_position_embeddings": (1, 1_048_576),
    "type_vocab_size": (0, 1_000),
}

# The same for the other numbers; outside, float32 would overflow or the function be another one.
RANGES = {"layer_norm_eps": (1e-30, 1.0), "rope_theta": (1.0, 1e12), "factor": (0.01, 10_000.0)}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding with inverse frequencies `1 / (theta^(2j/H) * divisor)`, j < H/2, H the head dimension.

    Both published spellings reduce to it. "ntk" scaling by f (original config.json) is theta*f with the divisor
    f^(2/H); "linear" scaling (newer `rope_parameters`) states theta and divisor outright.
    """

    theta: float
    divisor: float = 1.0


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Sizes and constants of one encoder; the names are those of config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int
    layer_norm_eps: float
    rope: Rope

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "EncoderConfig":
        """Reads the fields of a config.json, old or new spelling.

        Raises:
          StellaError: names the first field that is missing, malformed, absurd, or not implemented.
        """
        _refuse_unimplemented(fields)
        sizes = {name: _size(fields, name) for name in SIZES}
        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        if hidden % heads or (hidden // heads) % 2:
            raise StellaError(
                f"config.json: hidden_size {hidden} over num_attention_heads {heads} is no even whole number per head."
            )
        return cls(
            **sizes,
            pad_token_id=_pad_token_id(fields, sizes["vocab_size"]),
            layer_norm_eps=_number({"layer_norm_eps": 1e-12, **fields}, "layer_norm_eps"),
            rope=_rope(fields, hidden // heads),
        )

    def native_json(self) -> dict[str, Any]:
        """The same function spelt as transformers' own `GteConfig` (>= 5.23) reads it, without remote code."""
        sizes = {name: getattr(self, name) for name in SIZES}
        return {
            "architectures": ["GteModel"],
            "model_type": "gte",
            **sizes,
            "pad_token_id": self.pad_token_id,
            "hidden_act": "gelu",
            "layer_norm_eps": self.layer_norm_eps,
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": self.rope.theta,
                "factor": self.rope.divisor,
            },
        }


def _refuse_unimplemented(fields: Mapping[str, Any]) -> None:
    architectures = fields.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if architecture == "NewForSequenceClassification":
        raise StellaError(
            "config.json: NewForSequenceClassification is a reranker; this version embeds texts and does not score "
            "pairs, so pass an embedding checkpoint instead."
        )
    if architecture not in ARCHITECTURES:
        raise StellaError(
            f"config.json: architecture {short_repr(architecture)} is unknown; known are {_listed(ARCHITECTURES)}."
        )
    if fields.get("model_type") not in MODEL_TYPES:
        raise StellaError(
            f"config.json: model_type {short_repr(fields.get('model_type'))} is unknown; "
            f"known are {_listed(MODEL_TYPES)}."
        )
    for name, only in IMPLEMENTED.items():
        if fields.get(name, only) != only:
            raise StellaError(f"config.json: {name} = {short_repr(fields[name])} is not implemented; only {only!r} is.")


def _size(fields: Mapping[str, Any], name: str) -> int:
    low, high = SIZES[name]
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise StellaError(f"config.json: {name} = {short_repr(value)} must be a whole number from {low} to {high}.")
    return value


def _pad_token_id(fields: Mapping[str, Any], vocab_size: int) -> int:
    value = fields.get("pad_token_id", 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise StellaError(
            f"config.json: pad_token_id = {short_repr(value)} must be an id below vocab_size {vocab_size}."
        )
    return value


def _number(fields: Mapping[str, Any], name: str, where: str = "") -> float:
    low, high = RANGES[name]
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise StellaError(
            f"config.json: {where}{name} = {short_repr(value)} must be a number from {low:g} to {high:g}."
        )
    return float(value)


def _rope(fields: Mapping[str, Any], head_dim: int) -> Rope:
    if fields.get("rope_parameters") is not None:
        return _rope_from_parameters(fields["rope_parameters"])
    theta = _number(fields, "rope_theta")
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
    factor = _number(scaling, "factor", "rope_scaling.")
    return Rope(theta * factor, factor ** (2 / head_dim))


def _rope_from_parameters(parameters: Any) -> Rope:
    kind = parameters.get("rope_type", "default") if isinstance(parameters, Mapping) else None
    if kind not in ("default", "linear"):
        raise StellaError(
            f"config.json: rope_parameters = {short_repr(parameters)} is not implemented; "
            "types 'default' and 'linear' are."
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise StellaError("config.json: rope_parameters.partial_rotary_factor is not implemented; only 1.0 is.")
    theta = _number(parameters, "rope_theta", "rope_parameters.")
    if kind == "default":
        return Rope(theta)
    return Rope(theta, _number(parameters, "factor", "rope_parameters."))


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names)
