"""config.json and rope of published models."""

from typing import Any

from stella_jax import EncoderConfig
from stella_jax.checkpoint.config import Rope
from stella_jax.models import find_architecture

COMMON = {
    "architectures": ["NewModel"],
    "model_type": "new",
    "hidden_act": "gelu",
    "layer_norm_type": "layer_norm",
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "rope",
    "pack_qkv": True,
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "max_position_embeddings": 8192,
    "unpad_inputs": "true",
    "use_memory_efficient_attention": "true",
    "hidden_dropout_prob": 0.1,
}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
ENGLISH, MULTILINGUAL = {"vocab_size": 30528, "pad_token_id": 0}, {"vocab_size": 250048, "pad_token_id": 1}

PUBLISHED = {
    "stella_en_400M_v5": (
        LARGE | ENGLISH | {"type_vocab_size": 2, "rope_theta": 160000, "rope_scaling": {"type": "ntk", "factor": 2.0}},
        Rope(320000.0, 1.0218971486541166),
    ),
    "gte-base-en-v1.5": (
        BASE | ENGLISH | {"type_vocab_size": 0, "rope_theta": 500000, "rope_scaling": {"type": "ntk", "factor": 2.0}},
        Rope(1000000.0, 2 ** (1 / 32)),
    ),
    "gte-multilingual-base": (
        BASE
        | MULTILINGUAL
        | {"type_vocab_size": 1, "rope_theta": 20000, "rope_scaling": {"type": "ntk", "factor": 8.0}},
        Rope(160000.0, 8 ** (1 / 32)),
    ),
    "snowflake-arctic-embed-m-v2.0": (
        BASE
        | MULTILINGUAL
        | {"architectures": ["GteModel"], "model_type": "gte", "type_vocab_size": 1}
        | {"rope_theta": 160000, "rope_scaling": None},
        Rope(160000.0, 1.0),
    ),
}


def published(name: str) -> dict:
    return COMMON | PUBLISHED[name][0]


def read_config(fields: dict[str, Any]) -> EncoderConfig:
    """The config of a config.json."""
    return find_architecture(fields).config.from_json(fields)
