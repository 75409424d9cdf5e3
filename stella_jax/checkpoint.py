"""A checkpoint on disk: its layout, its weights in either form, and its tokenizer."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stella_jax.config import EncoderConfig
from stella_jax.directory import Directory
from stella_jax.errors import StellaError
from stella_jax.flax_weights import FlaxWeights
from stella_jax.heads import Head
from stella_jax.layout import Layout, read_layout
from stella_jax.model import Encoder
from stella_jax.sharding import EVERYWHERE, SPLIT
from stella_jax.shares import read_shares
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
        for path in self._largest_first("encoder/"):
            name = path.removeprefix("encoder/")
            kept = jnp.float32 if "norm/" in name else dtype
            _put(tree, name.split("/"), self._load(path, kept, mesh, SPLIT.get(name, EVERYWHERE)))
        nnx.replace_by_pure_dict(state, tree)
        return graphdef, state

    def head_params(self, head: Head | None, mesh: Mesh) -> Tree:
        """The head's parameters, float32, on every device."""
        if head is None:
            return {}
        folder = f"heads/{head.folder}/"
        paths = self._largest_first(folder)
        return {path.removeprefix(folder): self._load(path, np.float32, mesh, EVERYWHERE) for path in paths}

    def _largest_first(self, folder: str) -> list[str]:
        """Leaves under a path, in the order in which what a leaf takes while it is read adds least to the peak."""
        leaves = self.weights.leaves
        return sorted((path for path in leaves if path.startswith(folder)), key=lambda path: -prod(leaves[path].shape))

    def _load(self, path: str, dtype: Any, mesh: Mesh, spec: P) -> jax.Array:
        """A leaf on the mesh, each device's share read straight into its own memory where that is the host's."""
        shape, sharding = self.weights.leaves[path].shape, NamedSharding(mesh, spec)
        indices = sharding.addressable_devices_indices_map(shape)
        different = {str(index): index for index in indices.values() if index is not None}
        shares = dict(zip(different, read_shares(self.weights, path, dtype, [*different.values()]), strict=True))
        placed = [jax.device_put(shares[str(index)], device) for device, index in indices.items()]
        return jax.make_array_from_single_device_arrays(shape, sharding, placed)


def abstract_encoder(config: EncoderConfig, dtype: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """The encoder's structure and the shapes of its parameters, without their numbers."""
    return nnx.split(nnx.eval_shape(lambda: Encoder(config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))))


def _put(tree: Tree, path: list[str], leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf
