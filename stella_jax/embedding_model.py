"""The whole function from token ids to embeddings as one Flax module, for inference and training."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from stella_jax.arguments import check_choice
from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.errors import StellaError, join_words
from stella_jax.models import architecture_of
from stella_jax.models.encoder import Encoder
from stella_jax.models.heads import Dense, Head, Pooling, normalize, pool
from stella_jax.models.layers import Dropout


class EmbeddingModel(nnx.Module):
    """Encoder, pooling, Dense head, normalization: (B, T) token ids to (B, E) embeddings.

    It works under every JAX transform: closed over, or passed as an argument, as a module or as `nnx.split(model)`.

    Examples:
      >>> import jax
      >>> from stella_jax import load
      >>> model = load("tiny")
      >>> ids, lengths = jax.numpy.ones((2, 8), int), jax.numpy.array([8, 5])
      >>> jax.jit(model)(ids, lengths).shape
      (2, 128)
      >>> gradient = jax.jit(jax.grad(lambda model: model(ids, lengths).sum()))(model)
      >>> gradient.params()["head/kernel"].shape
      (128, 128)

    Attributes:
      encoder: token ids and lengths to one vector per token.
      head: the Dense head, or None if the pooled vector is the embedding.
      more_heads: further heads on the same pooled vector, for jobs that write several dimensions in one pass.
      pooling: "mean", "cls" (the first token) or "lasttoken".
      normalize: whether embeddings are scaled to unit length.
      dropout_rate: the checkpoint's own, for training.
      source: the directory that the weights came from, whose other files `save_pretrained` copies.

    Raises:
      StellaError: the pooling is not supported.
    """

    def __init__(
        self,
        encoder: Encoder,
        heads: Sequence[Dense | None],
        *,
        pooling: Pooling,
        normalize: bool = False,
        dropout_rate: float = 0.0,
        source: str | None = None,
    ):
        check_choice("pooling", pooling, get_args(Pooling))
        self.encoder = encoder
        self.head, *more_heads = heads
        self.more_heads = nnx.List(more_heads)
        self.pooling: Pooling = pooling
        self.normalize = normalize
        self.dropout_rate = dropout_rate
        self.source = source

    @staticmethod
    def abstract(
        config: EncoderConfig,
        heads: Sequence[Head | None],
        *,
        dtype: Any,
        param_dtype: Any,
        source: str | None = None,
        **options: Any,
    ) -> "EmbeddingModel":
        """A model whose parameters are shapes without numbers (`jax.ShapeDtypeStruct`).

        Args:
          config: the encoder's sizes.
          heads: the Dense heads, or None for the pooled vector; `head`, then `more_heads`.
          dtype: of the computation, a dtype or its name.
          param_dtype: of the parameters, except those of norms and heads, which are float32.
          source: see the attribute.
          options: `pooling`, which is required, `normalize` (False) and `dropout_rate` (0.0); see the attributes.

        Raises:
          StellaError: the pooling or a head's activation is not supported.
        """
        dtypes = jnp.dtype(dtype), jnp.dtype(param_dtype)
        model = nnx.merge(*_abstract(config, tuple(heads), *dtypes, **options), copy=True)
        model.source = source
        return model

    def __call__(
        self,
        ids: jax.Array,
        lengths: jax.Array,
        dropout: Dropout | None = None,
        remat_policy: Callable[..., bool] | None = None,
    ) -> jax.Array:
        """Embeds right-padded rows.

        Args:
          ids: (B, T) token ids, of an integer dtype such as int32; a single row is (1, T).
          lengths: (B,) integers, number of tokens of each row before its padding, at least 1.
          dropout, remat_policy: as in `Encoder`, for training.

        Returns:
          (B, E) float32.
        """
        return self.embeddings(self.last_hidden(ids, lengths, dropout, remat_policy), lengths)[0]

    def last_hidden(
        self,
        ids: jax.Array,
        lengths: jax.Array,
        dropout: Dropout | None = None,
        remat_policy: Callable[..., bool] | None = None,
    ) -> jax.Array:
        """The encoder's last hidden state (B, T, D) float32; arguments as for a call."""
        return self.encoder(ids, lengths, dropout, remat_policy)[0]

    def embeddings(self, hidden: jax.Array, lengths: jax.Array) -> tuple[jax.Array, ...]:
        """Each head's embeddings (B, E) float32, from the last hidden state (B, T, D) and lengths (B,)."""
        pooled = pool(hidden, lengths, self.pooling)
        found = (head(pooled) if head else pooled for head in self.heads)
        return tuple(normalize(embedding) if self.normalize else embedding for embedding in found)

    @property
    def heads(self) -> tuple[Dense | None, ...]:
        """`head`, then `more_heads`."""
        return self.head, *self.more_heads

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimension of each head's embeddings."""
        return tuple(head.spec.dim if head else self.encoder.config.hidden_size for head in self.heads)

    def params(self) -> dict[str, jax.Array]:
        """The parameters by name, such as "encoder/layers/mlp/down/kernel" or "head/kernel"."""
        flat = nnx.to_flat_state(nnx.state(self, nnx.Param))
        return {"/".join(map(str, path)): variable.get_value() for path, variable in flat}

    @property
    def trainable(self) -> list[str]:
        """Names of the parameters that train by default: those of adapters, or all if there are no adapters."""
        kind = nnx.LoRAParam if self.encoder.lora else nnx.Param
        return ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(self, kind))]

    def with_params(self, params: Mapping[str, jax.Array]) -> "EmbeddingModel":
        """A copy with some parameters replaced, by the names of `params`; it shares all other arrays.

        Raises:
          StellaError: a name is unknown, or an array has another shape.
        """
        mine = self.params()
        unknown = params.keys() - mine.keys()
        if unknown:
            raise StellaError(f"with_params: unknown parameters {join_words(sorted(unknown))}; params() has all names.")
        for name, array in params.items():
            if array.shape != mine[name].shape:
                raise StellaError(f"with_params: {name} must have the shape {mine[name].shape}, not {array.shape}.")
        all_params = {**mine, **params}
        graphdef, state = nnx.split(self)
        flat = {path: all_params.get("/".join(map(str, path)), leaf) for path, leaf in nnx.to_flat_state(state)}
        return nnx.merge(graphdef, nnx.from_flat_state(flat))

    def without_source(self) -> "EmbeddingModel":
        """The same modules and parameters without `source`."""
        options: dict[str, Any] = {"normalize": self.normalize, "dropout_rate": self.dropout_rate}
        return EmbeddingModel(self.encoder, self.heads, pooling=self.pooling, **options)

    def save_pretrained(self, directory: str | Path, *, native: bool = False) -> None:
        """Writes the model in the sentence-transformers layout into a new directory.

        Tokenizer, prompts, other files and the heads that were not loaded are copied from `source`. Unchanged
        parameters keep the bytes of their file; changed ones are written in float32. One more change: a checkpoint with
        the prompt `s2p_query` but no `query` gets the same prompt under the name `query` as well.

        Args:
          native: write the names and the config.json of transformers' own class, so that it and
            sentence-transformers load the directory without remote code.

        Raises:
          StellaError: the directory exists or cannot be written, a parameter is not finite, the model was not loaded
            from a checkpoint, or the checkpoint is gone or no longer fits. Nothing is left behind.
        """
        from stella_jax.checkpoint.save import save_model  # here, since save imports this module

        save_model(self, directory, native=native)


def check_model(value: object, name: str = "model") -> None:
    """Raises StellaError if the argument `name` is not an EmbeddingModel."""
    if not isinstance(value, EmbeddingModel):
        kind = type(value).__name__
        raise StellaError(f"{name}: {kind} is not an EmbeddingModel; pass what stella_jax.load returns.")


@cache
def _abstract(
    config: EncoderConfig, heads: tuple[Head | None, ...], dtype: Any, param_dtype: Any, **options: Any
) -> tuple[nnx.GraphDef, nnx.State]:
    """The parts of `EmbeddingModel.abstract`: tracing them takes half of the time in which a small model loads."""

    def create() -> EmbeddingModel:
        rngs = nnx.Rngs(0)
        encoder = architecture_of(config).encoder(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        dense = [head and Dense(head, config.hidden_size, rngs=rngs) for head in heads]
        return EmbeddingModel(encoder, dense, **options)

    return nnx.split(nnx.eval_shape(create))
