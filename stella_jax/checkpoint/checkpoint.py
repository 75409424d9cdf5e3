"""A checkpoint on disk: its description, its weights in either layout, and its tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stella_jax.checkpoint.device_slices import read_slices
from stella_jax.checkpoint.directory import Directory
from stella_jax.checkpoint.flax_weights import FlaxWeights
from stella_jax.checkpoint.hub import resolve
from stella_jax.checkpoint.model_spec import ModelSpec
from stella_jax.checkpoint.modules_json import read_model_spec
from stella_jax.checkpoint.weights import TorchWeights, Weights
from stella_jax.embedding_model import EmbeddingModel
from stella_jax.errors import StellaError, quoted, short_repr
from stella_jax.models.heads import Head
from stella_jax.sharding import check_mesh, make_mesh, param_spec
from stella_jax.tokenizer.pair_tokenizer import PairTokenizer
from stella_jax.tokenizer.tokenizer import Tokenizer

Tree = dict[Any, Any]

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened directory: everything is checked, and no weight is read yet."""

    directory: Directory
    spec: ModelSpec
    weights: Weights

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Opens a directory in the sentence-transformers layout or the layout that `convert` writes.

        Raises:
          StellaError: the checkpoint is not valid or not supported.
        """
        try:
            directory = Directory(path)
            spec = read_model_spec(directory)
            kind = FlaxWeights if FlaxWeights.exists_in(directory) else TorchWeights
            return cls(directory, spec, kind(directory, spec))
        except OSError as error:
            raise StellaError(f"{error.filename or path}: cannot be read ({error.strerror}).") from error

    def check_embeds(self, advice: str) -> None:
        """Refuses a reranker.

        Raises:
          StellaError: it is a reranker; the error ends with the advice.
        """
        if self.spec.is_reranker:
            raise StellaError(f"{self.directory.root}: a reranker, not an embedding model; {advice}.")

    def check_scores(self, name: object, advice: str) -> None:
        """Refuses an embedding model.

        Args:
          name: of this checkpoint, as the user gave it.

        Raises:
          StellaError: it is not a reranker; the error ends with the advice.
        """
        if not self.spec.is_reranker:
            raise StellaError(f"{quoted(name)}: an embedding model, not a reranker; {advice}.")

    def tokenizer(self, max_length: int | None = None) -> Tokenizer:
        """The tokenizer, which cuts texts at `max_length` tokens, or at the checkpoint's max_seq_length.

        Raises:
          StellaError: it cannot be read, or `max_length` is more than the encoder supports.
        """
        longest = self.spec.config.max_position_embeddings
        if max_length is not None and not 1 <= max_length <= longest:
            raise StellaError(f"max_length must be a whole number from 1 to {longest}, not {short_repr(max_length)}.")
        name = self.spec.file("tokenizer.json")
        if not self.directory.has(name):
            raise StellaError(
                f"{self.directory.path(name)}: file not found; vocabulary files alone do not define a tokenizer."
            )
        max_length = self.spec.max_seq_length if max_length is None else max_length
        options: dict[str, Any] = {"lower": self.spec.lower, "end_of_text": self.spec.end_of_text}
        kind = PairTokenizer if self.spec.is_reranker else Tokenizer
        tokenizer = kind(self.directory.path(name), max_length=max_length, **options)
        if tokenizer.vocab_size > self.spec.config.vocab_size:
            raise StellaError(
                f"{self.directory.path(name)}: token ids up to {tokenizer.vocab_size - 1} do not fit config.json's "
                f"vocab_size {self.spec.config.vocab_size}; the two files belong to different models."
            )
        return tokenizer

    def load_model(
        self,
        heads: Sequence[Head | None],
        mesh: Mesh,
        *,
        dtype: str = "float32",
        param_dtype: str = "float32",
        fsdp: bool = False,
    ) -> EmbeddingModel:
        """Loads the encoder and these heads as one module, with its parameters on the mesh.

        Args:
          dtype: of the computation.
          param_dtype: of the parameters, except those of norms and heads, which are float32.
          fsdp: whether to split parameters over the mesh's axis `data` as well.

        Raises:
          StellaError: the mesh does not fit the encoder, or a weight cannot be read.
        """
        spec = self.spec
        check_mesh(mesh, spec.config, spec.architecture.split_fields)
        model = abstract_model(
            spec, heads, dtype=dtype, param_dtype=param_dtype, source=str(self.directory.root.absolute())
        )
        graphdef, state = nnx.split(model)
        abstract = model.params()
        tree: Tree = {}
        for name, path in self._largest_first(leaf_paths(heads, self.weights)):
            partition = param_spec(spec.architecture.specs, name, self.weights.leaves[path].shape, mesh, fsdp)
            _set_leaf(tree, name.split("/"), self._load(path, abstract[name].dtype, mesh, partition))
        nnx.replace_by_pure_dict(state, tree)
        return nnx.merge(graphdef, state)

    def _largest_first(self, paths: Mapping[str, str]) -> list[tuple[str, str]]:
        """Names and leaves, the largest first, so that temporary memory for reading adds least to the peak."""
        return sorted(paths.items(), key=lambda item: -prod(self.weights.leaves[item[1]].shape))

    def _load(self, path: str, dtype: Any, mesh: Mesh, partition: P) -> jax.Array:
        """Loads a leaf onto the mesh; on CPU each slice is read straight into its device's memory."""
        shape, sharding = self.weights.leaves[path].shape, NamedSharding(mesh, partition)
        indices = sharding.addressable_devices_indices_map(shape)
        different = {str(index): index for index in indices.values() if index is not None}
        slices = dict(zip(different, read_slices(self.weights, path, dtype, [*different.values()]), strict=True))
        placed = [jax.device_put(slices[str(index)], device) for device, index in indices.items()]
        return jax.make_array_from_single_device_arrays(shape, sharding, placed)


def load(
    name_or_path: str | Path,
    dim: int | tuple[int, ...] | None = None,
    dtype: str | None = None,
    mesh: Mesh | str | None = None,
    revision: str | None = None,
    *,
    param_dtype: str = "float32",
) -> EmbeddingModel:
    """Loads a checkpoint as a Flax module of token ids, to use or train in your own programs.

    `Stella.from_pretrained` takes texts, and `Reranker.from_pretrained` pairs. For a reranker the module returns raw
    scores, (B, 1).

    Args:
      name_or_path, dim, dtype, mesh, revision: as in `Stella.from_pretrained`.
      param_dtype: of the parameters, except those of norms and heads; use float32 for training.

    Raises:
      StellaError: the checkpoint or an argument is not valid or not supported.
    """
    mesh = make_mesh(mesh)
    checkpoint = Checkpoint.open(resolve(name_or_path, revision))
    dtype, param_dtype = compute_dtype(dtype, mesh), compute_dtype(param_dtype, mesh)
    return checkpoint.load_model(checkpoint.spec.chosen_heads(dim), mesh, dtype=dtype, param_dtype=param_dtype)


def compute_dtype(dtype: str | None, mesh: Mesh) -> str:
    """The dtype to compute in on this mesh: the one given, or float32 on CPU and bfloat16 elsewhere.

    Raises:
      StellaError: it is not supported.
    """
    if dtype is None:
        return "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise StellaError(f"unsupported dtype {short_repr(dtype)}; choose {' or '.join(DTYPES)}.")
    return dtype


def abstract_model(spec: ModelSpec, heads: Sequence[Head | None], **options: Any) -> EmbeddingModel:
    """A checkpoint's model with shapes in place of arrays; `options` as in `EmbeddingModel.abstract`."""
    fixed = {"pooling": spec.pooling, "normalize": spec.normalize, "dropout_rate": spec.dropout_rate}
    return EmbeddingModel.abstract(spec.config, heads, **fixed, **options)


def leaf_paths(heads: Sequence[Head | None], weights: Weights) -> dict[str, str]:
    """Name of each parameter of a model -> path of the checkpoint's leaf.

    The encoder's names and paths are the same; "head/kernel", or "more_heads/<i>/kernel", is "heads/<folder>/kernel".
    """
    paths = {path: path for path in weights.leaves if path.startswith("encoder/")}
    for i, head in enumerate(heads):
        name, folder = f"more_heads/{i - 1}" if i else "head", f"heads/{head.folder}/" if head else None
        if folder:
            paths |= {f"{name}/{path.removeprefix(folder)}": path for path in weights.leaves if path.startswith(folder)}
    return paths


def _set_leaf(tree: Tree, path: list[str], leaf: Any) -> None:
    keys = [int(name) if name.isdecimal() else name for name in path]
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = leaf
