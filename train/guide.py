"""A guide: a frozen model that embeds the texts of each batch, too, for a loss that is guided by it."""

import json
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stella_jax.checkpoint import Checkpoint
from stella_jax.embedding_model import EmbeddingModel
from stella_jax.errors import StellaError, short_repr
from stella_jax.hub import resolve
from stella_jax.models import architecture_of
from stella_jax.sharding import param_spec, shard
from train.batches import Batch
from train.embed import embed_parts

COLUMN = "guide"


class Guide:
    """Adds a guide's embeddings to batches that are on a mesh, as the column "guide" (A, B, C, G).

    Args:
      model: the guide; where its parameters are not on the mesh, they are copied there.

    Attributes:
      dim: G.
    """

    def __init__(self, model: EmbeddingModel, mesh: Mesh):
        self.dim = model.dims[0]
        structure = nnx.eval_shape(lambda: model)
        specs = architecture_of(model.encoder.config).specs
        self._params = {name: _on(mesh, specs, name, leaf) for name, leaf in model.params().items()}
        self._embed = jax.jit(lambda params, batch: embed_parts(structure.with_params(params), batch))

    def __call__(self, batch: Batch) -> Batch:
        found = self._embed(self._params, batch)
        return batch._replace(columns=batch.columns | {COLUMN: found})


def _on(mesh: Mesh, specs: Mapping[str, P], name: str, leaf: jax.Array) -> jax.Array:
    if getattr(leaf.sharding, "mesh", None) == mesh:
        return leaf
    return shard(mesh, leaf, param_spec(specs, name, leaf.shape, mesh))


def open_guide(name: str, base: Checkpoint, max_length: int) -> Checkpoint:
    """A guide's checkpoint, which reads the token ids of the model that is trained.

    Args:
      name: as in `from_pretrained`.
      base: of the model.
      max_length: tokens at which its texts are cut.

    Raises:
      StellaError: there is no such checkpoint, it has another tokenizer, or does not reach that far.
    """
    guide = Checkpoint.open(resolve(name))
    if _tokenizer(guide) != _tokenizer(base):
        raise StellaError(
            f"loss.guide {short_repr(name)}: its tokenizer is not the model's, and both are given the same token ids; "
            "choose a guide with the model's tokenizer.json."
        )
    if guide.layout.max_seq_length < max_length:
        raise StellaError(
            f"loss.guide {short_repr(name)}: it takes {guide.layout.max_seq_length} tokens and the model's texts have "
            f"up to {max_length}; set data.max_length = {guide.layout.max_seq_length}."
        )
    return guide


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """What decides the ids of a text: neither padding nor truncation, which are switched off."""
    checkpoint.tokenizer()  # which says what is wrong with it
    path = checkpoint.directory.path(checkpoint.layout.file("tokenizer.json"))
    tree: dict[str, Any] = json.loads(path.read_bytes())
    return tree | {"padding": None, "truncation": None, "lower": checkpoint.layout.lower}
