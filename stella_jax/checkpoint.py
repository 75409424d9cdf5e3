"""A checkpoint on disk: its layout, its weights in either form, and its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from stella_jax.config import EncoderConfig
from stella_jax.directory import Directory
from stella_jax.errors import StellaError
from stella_jax.flax_weights import FlaxWeights
from stella_jax.heads import Head
from stella_jax.layout import Layout, read_layout
from stella_jax.model import Encoder
from stella_jax.sharding import EVERYWHERE, SPLIT, place
from stella_jax.tokenizer import Tokenizer
from stella_jax.weights import TorchWeights, Weights

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened directory: everything is checked, no weight is read yet."""

    directory: Directory
    layout: Layout
    weights: Weights

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Opens a directory in the sentence-transformers layout or in the one that `convert` writes.

        Raises:
          StellaError: what is wrong with it.
        """
        try:
            directory = Directory(path)
            layout = read_layout(directory)
            kind = FlaxWeights if FlaxWeights.present(directory) else TorchWeights
            return cls(directory, layout, kind(directory, layout))
        except OSError as error:
            raise StellaError(f"{error.filename or path} cannot be read: {error.strerror}.") from error

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, cutting at the checkpoint's max_seq_length."""
        name = self.layout.file("tokenizer.json")
        if not self.directory.has(name):
            raise StellaError(f"{self.directory.path(name)} is missing; vocab files alone do not define a tokenizer.")
        tokenizer = Tokenizer(self.directory.path(name), max_length=self.layout.max_seq_length, lower=self.layout.lower)
        if tokenizer.vocab_size > self.layout.config.vocab_size:
            raise StellaError(
                f"{self.directory.path(name)} gives token ids up to {tokenizer.vocab_size - 1}, but config.json's "
                f"vocab_size is {self.layout.config.vocab_size}; they belong to different models."
            )
        return tokenizer

    def encoder_state(self, dtype: Any, mesh: Mesh) -> tuple[nnx.GraphDef, nnx.State]:
        """The encoder with its parameters on the mesh: those of the norms in float32, all others in `dtype`."""
        graphdef, state = abstract_encoder(self.layout.config, dtype)
        tree: Tree = {}
        for path in self.weights.leaves:
            section, _, name = path.partition("/")
            if section == "encoder":
                kept = jnp.float32 if "norm/" in name else dtype
                array = self.weights.read(path).astype(kept, copy=False)
                _put(tree, name.split("/"), place(mesh, array, SPLIT.get(name, EVERYWHERE)))
        nnx.replace_by_pure_dict(state, tree)
        return graphdef, state

    def head_params(self, head: Head | None, mesh: Mesh) -> Tree:
        """The head's parameters, float32, on every device."""
        folder = f"heads/{head.folder}/" if head else None
        return {
            path.removeprefix(folder): place(mesh, self.weights.read(path).astype(np.float32, copy=False))
            for path in self.weights.leaves
            if folder and path.startswith(folder)
        }


def abstract_encoder(config: EncoderConfig, dtype: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """The encoder's structure and the shapes of its parameters, without their numbers."""
    return nnx.split(nnx.eval_shape(lambda: Encoder(config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))))


def _put(tree: Tree, path: list[str], leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf
