"""The stella, gte and arctic-embed models in JAX/Flax: exact, fast, no remote code."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stella_jax.errors import StellaError

if TYPE_CHECKING:
    from stella_jax.checkpoint.checkpoint import load
    from stella_jax.checkpoint.config import EncoderConfig
    from stella_jax.embedder import Stella
    from stella_jax.embedding_model import EmbeddingModel
    from stella_jax.models.encoder import Encoder
    from stella_jax.reranker import Reranker

__all__ = ["EmbeddingModel", "Encoder", "EncoderConfig", "Reranker", "Stella", "StellaError", "load"]
__version__ = "0.1.0"

# Imported on first use: importing JAX takes seconds, and --help must not wait for it.
_MODULES = {
    "EmbeddingModel": "embedding_model",
    "Encoder": "models.encoder",
    "EncoderConfig": "checkpoint.config",
    "Reranker": "reranker",
    "Stella": "embedder",
    "load": "checkpoint.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
