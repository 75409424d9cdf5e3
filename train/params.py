"""What is trained: the encoder and one head, their parameters by name, and which device holds what.

Names are those of the checkpoint's own leaves: "encoder/layers/mlp/down/kernel", and "head/kernel" for the head, in
whichever folder it lies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stella_jax.checkpoint import Checkpoint
from stella_jax.errors import StellaError, shown
from stella_jax.heads import Head, Pooling, apply_head, normalize, pool
from stella_jax.model import Dropout, Encoder
from stella_jax.runner import Runner
from stella_jax.sharding import EVERYWHERE, SPLIT, check_mesh, place

Params = dict[str, jax.Array]

# Leaves under it have a leading axis of layers.
STACKED = "encoder/layers/"

# Of `NewModel` and `GteModel`, where config.json has none.
DEFAULT_DROPOUT = 0.1


@dataclass(frozen=True, slots=True)
class Network:
    """The function that parameters make: tokens to embeddings.

    Attributes:
      dropout: the checkpoint's own rate, for those who ask for it.
    """

    graphdef: nnx.GraphDef
    head: Head | None
    pooling: Pooling
    normalize: bool
    dropout: float

    def embed(
        self,
        params: Params,
        ids: jax.Array,
        lengths: jax.Array,
        dropout: Dropout | None = None,
        keep: Callable[..., bool] | None = None,
    ) -> jax.Array:
        """Embeddings (B, E) float32 of ids (B, T) and lengths (B,); `dropout` and `keep` as in `Encoder`."""
        encoder = nnx.merge(self.graphdef, nnx.State(nested(params, "encoder/")))
        # Where float32 is asked for, no chip may quietly multiply in less.
        with jax.default_matmul_precision("highest" if encoder.dtype == jnp.float32 else "default"):
            hidden = encoder(ids, lengths, dropout, keep)[0]
        pooled = pool(hidden, lengths, self.pooling)
        embedding = apply_head(self.head, nested(params, "head/"), pooled) if self.head else pooled
        return normalize(embedding) if self.normalize else embedding


def load(
    checkpoint: Checkpoint, mesh: Mesh, dim: int | None = None, dtype: str = "float32", fsdp: bool = False
) -> tuple[Network, Params]:
    """A checkpoint's encoder and the head of this dimension, parameters in float32 on the mesh, to compute in `dtype`.

    Raises:
      StellaError: there is no such head, or the mesh does not fit.
    """
    layout = checkpoint.layout
    check_mesh(mesh, layout.config)
    head = layout.head(dim)
    folders = {"encoder/": "encoder/"} | ({f"heads/{head.folder}/": "head/"} if head else {})
    params = {}
    for path in checkpoint.weights.leaves:
        for folder, name in folders.items():
            if path.startswith(folder):
                name = name + path.removeprefix(folder)
                array = checkpoint.weights.read(path).astype(np.float32, copy=False)
                # Copied, as the memory of NumPy's array may not be written to by the first step.
                params[name] = place(mesh, array, spec(name, array.shape, mesh, fsdp)).copy()
    encoder = nnx.eval_shape(
        lambda: Encoder(layout.config, dtype=jnp.dtype(dtype), param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    return Network(nnx.graphdef(encoder), head, layout.pooling, layout.normalize, _dropout(checkpoint)), params


def lend(params: Params, runner: Runner) -> None:
    """Lets a runner of this checkpoint and head embed with these parameters, until the step that uses them up."""
    runner.use(nnx.State(nested(params, "encoder/")), (nested(params, "head/"),))


def spec(name: str, shape: tuple[int, ...], mesh: Mesh, fsdp: bool = False) -> P:
    """Which axes of a leaf are split over the mesh: as in inference, and with `fsdp` the longest other over `data`."""
    split = SPLIT.get(name.removeprefix("encoder/"), EVERYWHERE)
    if not fsdp:
        return split
    axes = [*split, *[None] * (len(shape) - len(split))]
    free = [
        axis
        for axis in range(name.startswith(STACKED), len(shape))  # a scan takes layers one by one
        if axes[axis] is None and shape[axis] % mesh.shape["data"] == 0
    ]
    if free:
        axes[max(free, key=lambda axis: shape[axis])] = "data"
    return P(*axes)


def nested(params: Params, prefix: str) -> dict[str, Any]:
    """The leaves under a prefix as a tree of dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in params.items():
        if name.startswith(prefix):
            *folders, last = name.removeprefix(prefix).split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[last] = leaf
    return tree


def _dropout(checkpoint: Checkpoint) -> float:
    rate = checkpoint.directory.json_object(checkpoint.layout.file("config.json")).get(
        "hidden_dropout_prob", DEFAULT_DROPOUT
    )
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise StellaError(f"config.json: hidden_dropout_prob = {shown(rate)} must be a number from 0 to below 1.")
    return float(rate)
