"""Runs the encoder one layer at a time, which is fastest on a CPU.

XLA on CPU cannot multiply with a layer inside the stack: a scan first copies the layer's weights out, 50 MB for stella
in float32, which takes half of a short query's time and an eighth of a full batch's. Here each layer's weights are
arrays of their own, in the stack's memory, and one compiled layer is called repeatedly.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from stella_jax.models.encoder import Encoder
from stella_jax.sharding import shard

Tree = dict[str, Any]


class LayerByLayer:
    """`Encoder.__call__` on a mesh of one CPU device; call it outside of `jax.jit`.

    Args:
      encoder: its arrays must not change.
    """

    def __init__(self, encoder: Encoder, mesh: Mesh):
        embeddings, self._embeddings = _split(encoder.embeddings)
        layer, stack = _split(encoder.layers)
        self._layers = _unstacked(stack, encoder.config.num_hidden_layers, mesh)
        norm, self._norm = _split(encoder.norm) if encoder.norm else (None, None)
        self._embed, self._layer, self._last_norm = _programs(embeddings, layer, norm)

    def __call__(self, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        """The last hidden state (B, T, D) float32 for ids (B, T) and lengths (B,)."""
        x = self._embed(self._embeddings, ids)
        for layer in self._layers:
            x = self._layer(layer, x, lengths)
        return x if self._norm is None else self._last_norm(self._norm, x)


def _split(module: nnx.Module) -> tuple[nnx.GraphDef, Tree]:
    """A module's structure, and its parameters as plain dicts, which are the fastest arguments of a call."""
    graphdef, state = nnx.split(module)
    return graphdef, nnx.to_pure_dict(state)


def _unstacked(stack: Tree, num_layers: int, mesh: Mesh) -> list[Tree]:
    """Each layer's slices of the stacked arrays, in the same memory."""
    leaves, structure = jax.tree.flatten(stack)
    stacked = [np.asarray(leaf) for leaf in leaves]
    return [structure.unflatten(shard(mesh, leaf[i]) for leaf in stacked) for i in range(num_layers)]


@cache
def _programs(
    embeddings: nnx.GraphDef, layer: nnx.GraphDef, norm: nnx.GraphDef | None
) -> tuple[Callable[..., jax.Array], ...]:
    """(params, ids) -> x, (params, x, lengths) -> x and (params, x) -> x; compiled once per structure.

    The latter two donate the memory of x to their result.
    """

    @jax.jit
    def embed(params: Tree, ids: jax.Array) -> jax.Array:
        return nnx.merge(embeddings, nnx.State(params))(ids)

    @partial(jax.jit, donate_argnames="x")
    def run(params: Tree, x: jax.Array, lengths: jax.Array) -> jax.Array:
        return nnx.merge(layer, nnx.State(params))(x, lengths)

    @partial(jax.jit, donate_argnames="x")
    def last_norm(params: Tree, x: jax.Array) -> jax.Array:
        assert norm is not None
        return nnx.merge(norm, nnx.State(params))(x)

    return embed, run, last_norm
