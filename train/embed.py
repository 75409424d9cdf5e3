"""Embeddings of the texts of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stella_jax.embedding_model import EmbeddingModel
from stella_jax.models.layers import Dropout
from train.batches import TrainBatch
from train.losses import Embeddings


def embed_micro_batch(
    model: EmbeddingModel,
    micro_batch: TrainBatch,
    dropout: Callable[[int], Dropout | None] = lambda group: None,
    remat_policy: Any = None,
) -> Embeddings:
    """Embeds a micro-batch: (B, E) of each column.

    Args:
      micro_batch: a batch without the leading axis of micro-batches.
      dropout: index of a group of texts -> its dropout.
      remat_policy: as in `stella_jax.Encoder`.
    """
    groups = [
        model(ids, lengths, dropout(i), remat_policy)
        for i, (ids, lengths) in enumerate(zip(micro_batch.ids, micro_batch.lengths, strict=True))
    ]
    texts = jnp.concatenate(groups)
    return tuple(texts[micro_batch.places[:, column]] for column in range(micro_batch.places.shape[1]))


def embed_batch(model: EmbeddingModel, batch: TrainBatch) -> jax.Array:
    """Embeds a whole batch: (A, B, C, E), with one micro-batch in memory at a time."""
    return jax.lax.map(lambda each: jnp.stack(embed_micro_batch(model, each), axis=1), batch)
