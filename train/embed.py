"""Embeddings of the texts of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stella_jax.embedding_model import EmbeddingModel
from stella_jax.models.layers import Dropout
from train.batches import TrainBatch
from train.losses import Embeddings


def embed_part(
    model: EmbeddingModel,
    part: TrainBatch,
    dropout: Callable[[int], Dropout | None] = lambda group: None,
    remat_policy: Any = None,
) -> Embeddings:
    """Embeds a part of a batch: (B, E) of each column.

    Args:
      part: a batch without the leading axis of parts.
      dropout: index of a group of texts -> its dropout.
      remat_policy: as in `stella_jax.Encoder`.
    """
    groups = [
        model(ids, lengths, dropout(i), remat_policy)
        for i, (ids, lengths) in enumerate(zip(part.ids, part.lengths, strict=True))
    ]
    texts = jnp.concatenate(groups)
    return tuple(texts[part.places[:, column]] for column in range(part.places.shape[1]))


def embed_parts(model: EmbeddingModel, batch: TrainBatch) -> jax.Array:
    """Embeds a whole batch: (A, B, C, E), with one part in memory at a time."""
    return jax.lax.map(lambda part: jnp.stack(embed_part(model, part), axis=1), batch)
