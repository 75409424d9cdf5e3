"""Encoders without heads, split into graph and state, with real parameters or abstract ones."""

from pathlib import Path
from typing import Any

from flax import nnx

from stella_jax import EmbeddingModel, EncoderConfig
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.sharding import make_mesh


def split_encoder(source: Path | Checkpoint) -> tuple[nnx.GraphDef, nnx.State]:
    """The encoder of a checkpoint, float32."""
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
    return nnx.split(checkpoint.load_model([None], make_mesh()).encoder)


def abstract_model(config: EncoderConfig, dtype: Any) -> EmbeddingModel:
    """A model without a head; its parameters are shapes."""
    return EmbeddingModel.abstract(config, [None], dtype=dtype, param_dtype=dtype, pooling="mean")


def abstract_encoder(config: EncoderConfig, dtype: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """The encoder of an abstract model."""
    return nnx.split(abstract_model(config, dtype).encoder)
