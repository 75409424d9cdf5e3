"""Guide: a frozen model whose embeddings of each batch a loss such as GISTEmbed reads."""

import json
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.hub import resolve
from stella_jax.embedding_model import EmbeddingModel
from stella_jax.errors import StellaError, short_repr
from stella_jax.models import architecture_of
from stella_jax.sharding import param_spec, shard
from train.batches import TrainBatch
from train.embed import embed_batch

COLUMN = "guide"


class Guide:
    """Adds the guide's embeddings to batches on a mesh, as the column "guide" (A, B, C, G).

    Args:
      model: the guide; parameters that are not on the mesh are copied to it.
      mesh: the mesh of the batches.

    Attributes:
      dim: embedding dimension G.
    """

    def __init__(self, model: EmbeddingModel, mesh: Mesh):
        self.dim = model.dims[0]
        structure = nnx.eval_shape(lambda: model)
        specs = architecture_of(model.encoder.config).specs
        self._params = {name: _on(mesh, specs, name, leaf) for name, leaf in model.params().items()}
        self._embed = jax.jit(lambda params, batch: embed_batch(structure.with_params(params), batch))

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        found = self._embed(self._params, batch)
        return batch._replace(columns=batch.columns | {COLUMN: found})


def _on(mesh: Mesh, specs: Mapping[str, P], name: str, leaf: jax.Array) -> jax.Array:
    if getattr(leaf.sharding, "mesh", None) == mesh:
        return leaf
    return shard(mesh, leaf, param_spec(specs, name, leaf.shape, mesh))


def open_guide(name: str, base: Checkpoint, max_length: int) -> Checkpoint:
    """Opens a guide's checkpoint, which must read the same token ids as the trained model.

    Args:
      name: as in `from_pretrained`.
      base: the trained model's checkpoint.
      max_length: tokens at which texts are truncated.

    Raises:
      StellaError: there is no such checkpoint, its tokenizer differs, or its maximum length is shorter.
    """
    guide = Checkpoint.open(resolve(name))
    guide.check_embeds("choose an embedding model as loss.guide")
    if _tokenizer(guide) != _tokenizer(base):
        raise StellaError(
            f"loss.guide {short_repr(name)}: its tokenizer differs from the model's; choose a guide with the model's "
            "tokenizer.json."
        )
    if guide.spec.max_seq_length < max_length:
        raise StellaError(
            f"loss.guide {short_repr(name)}: its limit is {guide.spec.max_seq_length} tokens, but texts have up to "
            f"{max_length}; set data.max_length = {guide.spec.max_seq_length}."
        )
    return guide


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """The parts of a tokenizer that decide a text's ids; padding and truncation are switched off."""
    checkpoint.tokenizer()  # raises if it is not valid
    path = checkpoint.directory.path(checkpoint.spec.file("tokenizer.json"))
    tree: dict[str, Any] = json.loads(path.read_bytes())
    return tree | {"padding": None, "truncation": None, "lower": checkpoint.spec.lower}
