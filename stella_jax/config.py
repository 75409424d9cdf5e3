"""The numbers that define the encoder's function, read from a checkpoint's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stella_jax.errors import StellaError

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
                f"config.json: hidden_size {hidden} over num_attention_heads {heads} is not an even whole number per head."
            )
        return cls(
            **sizes,
            pad_token_id=_pad_token_id(fields, sizes["vocab_size"]),
            layer_norm_eps=_positive(fields, "layer_norm_eps", fields.get("layer_norm_eps", 1e-12)),
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
    architectures = fields.get("architectures") or ["(none)"]
    if architectures[0] == "NewForSequenceClassification":
        raise StellaError(
            "config.json: NewForSequenceClassification is a reranker; this version embeds texts and does not score "
            "pairs, so pass an embedding checkpoint instead."
        )
    if architectures[0] not in ARCHITECTURES:
        raise StellaError(f"config.json: architecture {architectures[0]!r} is unknown; known are {_listed(ARCHITECTURES)}.")
    if fields.get("model_type") not in MODEL_TYPES:
        raise StellaError(
            f"config.json: model_type {fields.get('model_type')!r} is unknown; known are {_listed(MODEL_TYPES)}."
        )
    for name, only in IMPLEMENTED.items():
        if fields.get(name, only) != only:
            raise StellaError(f"config.json: {name} = {fields[name]!r} is not implemented; only {only!r} is.")


def _size(fields: Mapping[str, Any], name: str) -> int:
    low, high = SIZES[name]
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise StellaError(f"config.json: {name} = {value!r} must be a whole number from {low} to {high}.")
    return value


def _pad_token_id(fields: Mapping[str, Any], vocab_size: int) -> int:
    value = fields.get("pad_token_id", 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise StellaError(f"config.json: pad_token_id = {value!r} must be a token id below vocab_size {vocab_size}.")
    return value


def _positive(fields: Mapping[str, Any], name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise StellaError(f"config.json: {name} = {value!r} must be a positive number.")
    return float(value)


def _rope(fields: Mapping[str, Any], head_dim: int) -> Rope:
    if fields.get("rope_parameters") is not None:
        return _rope_from_parameters(fields["rope_parameters"])
    theta = _positive(fields, "rope_theta", fields.get("rope_theta"))
    scaling = fields.get("rope_scaling")
    if scaling is None:
        return Rope(theta)
    if not isinstance(scaling, Mapping) or scaling.get("type", scaling.get("rope_type")) != "ntk":
        raise StellaError(f"config.json: rope_scaling = {scaling!r} is not implemented; null and type 'ntk' are.")
    if scaling.get("mixed_b") is not None:
        raise StellaError(f"config.json: rope_scaling mixed_b = {scaling['mixed_b']!r} is not implemented; only null is.")
    factor = _positive(scaling, "rope_scaling.factor", scaling.get("factor"))
    return Rope(theta * factor, factor ** (2 / head_dim))


def _rope_from_parameters(parameters: Any) -> Rope:
    kind = parameters.get("rope_type", "default") if isinstance(parameters, Mapping) else None
    if kind not in ("default", "linear"):
        raise StellaError(
            f"config.json: rope_parameters = {parameters!r} is not implemented; rope_type 'default' and 'linear' are."
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise StellaError("config.json: rope_parameters.partial_rotary_factor is not implemented; only 1.0 is.")
    theta = _positive(parameters, "rope_parameters.rope_theta", parameters.get("rope_theta"))
    if kind == "default":
        return Rope(theta)
    return Rope(theta, _positive(parameters, "rope_parameters.factor", parameters.get("factor")))


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names)
