"""The `NewModel` encoder family (stella, gte, arctic-embed-m-v2) in JAX/Flax: exact, fast, no remote code."""

from stella_jax.config import EncoderConfig
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.model import Encoder

__all__ = ["Encoder", "EncoderConfig", "Stella", "StellaError"]
__version__ = "0.1.0"
