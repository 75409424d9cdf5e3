"""Rematerialization: what a layer saves for its gradient, and what is computed again."""

from collections.abc import Callable
from typing import Any

import jax

from stella_jax.models.layers import DROPOUT_MASK

# Matrix products and dropout masks are saved. All between is cheap to recompute, and takes half of a layer's memory.
SAVE = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(DROPOUT_MASK)
)


def remat_policy(whole_layers: bool, rank: int) -> Callable[..., Any]:
    """The policy for `jax.checkpoint` of a layer.

    Args:
      whole_layers: save nothing but the layer's input.
      rank: of the adapters, 0 for none. Products with an adapter's B are not saved: they are as large as a layer's own
        and cheap to recompute.
    """

    def save(primitive: Any, *avals: Any, **parameters: Any) -> Any:
        by_b = primitive is jax.lax.dot_general_p and avals[0].ndim == 3 and avals[1].ndim == 2
        return not (by_b and avals[1].shape[0] == rank) and SAVE(primitive, *avals, **parameters)

    if whole_layers:
        return jax.checkpoint_policies.nothing_saveable
    return save if rank else SAVE
