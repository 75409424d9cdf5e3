"""Types and helpers of all losses.

Axes: B rows, E embedding dimension; n columns of candidates (positives, negatives), c rows of each.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp

from stella_jax.errors import StellaError
from stella_jax.models.heads import normalize

Embeddings = tuple[jax.Array, ...]
Columns = Mapping[str, jax.Array]
Loss = Callable[[Embeddings, Columns], jax.Array]

NO_COLUMNS: Columns = MappingProxyType({})

# A score below all others: its exponential is 0, and 0 times it is 0.
NOT_A_CANDIDATE = -1e30


def counted(columns: Columns, rows: int) -> jax.Array:
    """(B,) float32, 1 for a row and 0 for padding; without "weights", every row counts."""
    return (columns["weights"] > 0).astype(jnp.float32) if "weights" in columns else jnp.ones(rows)


def column(columns: Columns, name: str, loss: str) -> jax.Array:
    """A further column that a loss needs.

    Raises:
      StellaError: it is missing.
    """
    if name not in columns:
        raise StellaError(f"loss {loss}: missing column {name!r}; add it to each row.")
    return columns[name]


def cosines(a: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
    """Cosines (B, n, c) of each row of a (B, E) with all rows of n others (c, E)."""
    # Stacked along a new axis: concatenated along B, rows would move between devices.
    return jnp.einsum("be,nce->bnc", normalize(a), normalize(jnp.stack(others)), precision="highest")
