"""Matryoshka loss: another loss summed over prefixes of the embeddings."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError
from stella_jax.models.heads import normalize
from train.losses.common import NO_COLUMNS, Columns, Embeddings, Loss


def matryoshka(loss: Loss, dims: Sequence[int], weights: Sequence[float] | None = None) -> Loss:
    """The weighted sum of a loss over normalized prefixes of the embeddings.

    Args:
      loss: the wrapped loss.
      dims: lengths of the prefixes, each at most E.
      weights: weight of each prefix's loss; None is 1 each.

    Raises:
      StellaError: there are no dims, or dims and weights differ in number.

    Reference: Kusupati et al. 2022, as sentence-transformers' MatryoshkaLoss.
    """
    if not dims or (weights and len(weights) != len(dims)):
        raise StellaError(f"matryoshka: {len(dims)} dims and {len(weights or [])} weights; give each dim one weight.")
    return partial(_matryoshka, loss, tuple(dims), tuple(weights or [1.0] * len(dims)))


def _matryoshka(
    loss: Loss, dims: tuple[int, ...], weights: tuple[float, ...], embeddings: Embeddings, columns: Columns = NO_COLUMNS
) -> jax.Array:
    found = (loss(each, columns) for each in prefixes(embeddings, dims))
    losses = (weight * each for weight, each in zip(weights, found, strict=True))
    return sum(losses, jnp.zeros(len(embeddings[0])))


def prefixes(embeddings: Embeddings, dims: Sequence[int]) -> list[Embeddings]:
    """The embeddings (B, E) of each column, truncated to each of the dims and normalized.

    Raises:
      StellaError: a dim is above E.
    """
    whole = embeddings[0].shape[1]
    if max(dims) > whole:
        raise StellaError(f"loss.matryoshka_dims: {max(dims)} is above the embedding dimension {whole}; lower it.")
    return [tuple(normalize(embedding[:, :dim]) for embedding in embeddings) for dim in dims]
