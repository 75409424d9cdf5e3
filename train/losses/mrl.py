"""A loss over prefixes of the embeddings (Matryoshka representation learning)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError
from stella_jax.heads import normalize
from train.losses.common import NO_COLUMNS, Columns, Embeddings, Loss


def matryoshka(loss: Loss, dims: Sequence[int], weights: Sequence[float] | None = None) -> Loss:
    """The sum of a loss over prefixes of the embeddings, each scaled to unit length.

    Args:
      dims: lengths of the prefixes, each at most E.
      weights: what the loss of each prefix is multiplied by; None is 1 each.

    Raises:
      StellaError: there are no dims, or other weights than dims.

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
    """The embeddings (B, E) of each column cut to each of the dims, and scaled to unit length.

    Raises:
      StellaError: a dim is more than E.
    """
    whole = embeddings[0].shape[1]
    if max(dims) > whole:
        raise StellaError(f"loss.matryoshka_dims: {max(dims)} is more than the {whole} numbers of an embedding.")
    return [tuple(normalize(embedding[:, :dim]) for embedding in embeddings) for dim in dims]
