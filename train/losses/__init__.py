"""Losses: functions from embeddings and further columns to per-example losses, as in sentence-transformers 6.2.

A loss takes the embeddings (B, E) of each column of texts (anchor, positive, negatives) and a mapping of further
columns (B, ...), and returns (B,) float32. A training step takes the weighted mean over rows; `columns["weights"]` (B,)
is 1 for a row and 0 for padding, which a loss that compares rows must skip. Without `columns`, every row counts:

    loss = triplet((anchors, positives, negatives), margin=0.5).mean()

Further columns are `score` (B,) or (B, n), one for each of n candidates; `teacher` (B, E') or (B, C, E') for C columns
of texts; `guide` (B, C, G), added by a step with a guide; or any other name.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from train.losses.common import NO_COLUMNS, Columns, Embeddings, Loss
from train.losses.distillation import stella_distillation
from train.losses.mrl import matryoshka
from train.losses.ranking import gist_embed, multiple_negatives_ranking
from train.losses.scored import cosent, kl_distillation, margin_mse
from train.losses.triplets import DISTANCES, triplet

__all__ = [
    "BUILT_IN",
    "DISTANCES",
    "NO_COLUMNS",
    "Columns",
    "Embeddings",
    "Loss",
    "LossSpec",
    "cosent",
    "gist_embed",
    "kl_distillation",
    "margin_mse",
    "matryoshka",
    "multiple_negatives_ranking",
    "stella_distillation",
    "triplet",
]


@dataclass(frozen=True, slots=True)
class LossSpec:
    """A loss and the columns that it needs.

    Attributes:
      function: of embeddings, columns and keyword arguments.
      texts: minimum and maximum number of columns of texts (anchor, positive, negatives); None means unlimited.
      columns: further columns of the data that it reads.
      own_prefixes: whether it has an argument `matryoshka_dims` itself.
    """

    function: Callable[..., jax.Array]
    texts: tuple[int, int | None] = (2, None)
    columns: tuple[str, ...] = ()
    own_prefixes: bool = False


BUILT_IN: dict[str, LossSpec] = {
    "triplet": LossSpec(triplet, (3, 3)),
    "multiple_negatives_ranking": LossSpec(multiple_negatives_ranking),
    "gist_embed": LossSpec(gist_embed),
    "cosent": LossSpec(cosent, (2, 2), ("score",)),
    "margin_mse": LossSpec(margin_mse, (3, None), ("score",)),
    "kl_distillation": LossSpec(kl_distillation, (3, None), ("score",)),
    "stella_distillation": LossSpec(stella_distillation, (1, None), ("teacher",), own_prefixes=True),
}
