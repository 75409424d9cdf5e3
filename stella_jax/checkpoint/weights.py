"""The weights of a PyTorch checkpoint, as leaves of the parameter tree.

Leaf paths: `encoder/...` as in the architecture's table, `heads/<folder>/{kernel,bias}`, and `passthrough/...` for
tensors that are kept but not used. A leaf of the encoder's layers holds all layers, stacked.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stella_jax.checkpoint.directory import Directory
from stella_jax.checkpoint.model_spec import ModelSpec
from stella_jax.checkpoint.shards import DTYPES, Shard, Tensor, open_shards
from stella_jax.checkpoint.weight_map import HEAD, Sizes, WeightSpec
from stella_jax.errors import StellaError
from stella_jax.memory import aligned, copy, in_threads
from stella_jax.models.heads import CLASSIFIER, Head


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf and its torch tensors, one per layer if it is stacked.

    `folder` is the module whose files hold the tensors, `weight` the row of the weight table, None for tensors that
    pass through.
    """

    path: str
    shape: tuple[int, ...]
    folder: str
    torch_names: tuple[str, ...]
    weight: WeightSpec | None
    sizes: Sizes

    @property
    def stacked(self) -> bool:
        """Whether its first axis is the layers."""
        return self.weight is not None and self.weight.stacked

    def torch_shape(self) -> tuple[int, ...]:
        """Shape of each of the torch tensors."""
        return self.shape if self.weight is None else self.weight.torch_shape(self.sizes)

    def to_torch(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The torch tensors of an array of this leaf, by name, contiguous."""
        for i, name in enumerate(self.torch_names):
            if self.weight is None:
                yield name, np.ascontiguousarray(array)
            else:
                yield name, self.weight.to_torch(array[i] if self.stacked else array, self.sizes)


class Weights(Protocol):
    """The weights of an opened checkpoint, in either layout."""

    leaves: dict[str, Leaf]
    dtypes: dict[str, np.dtype]
    prefix: str  # of the encoder's torch names
    headers: dict[str, str]  # of each original safetensors file, by its relative path

    def read(self, path: str) -> np.ndarray:
        """One leaf, contiguous, in its stored dtype."""
        ...


def encoder_leaves(spec: ModelSpec, prefix: str) -> Iterator[Leaf]:
    """The leaves of the encoder; `prefix` is the prefix of its torch names."""
    sizes = spec.architecture.sizes(spec.config)
    for weight in spec.architecture.weights_of(spec.config):
        layers = range(sizes["L"]) if weight.stacked else [0]
        names = tuple(prefix + weight.torch.format(i=i) for i in layers)
        shape = weight.flax_shape(sizes)
        shape = (len(names), *shape) if weight.stacked else shape
        yield Leaf(f"encoder/{weight.flax}", shape, spec.transformer, names, weight, sizes)


def head_leaves(head: Head, hidden: int) -> Iterator[Leaf]:
    """The leaves of a Dense head."""
    sizes = {"D": hidden, "E": head.dim}
    for weight in HEAD if head.bias else HEAD[:1]:
        path = f"heads/{head.folder}/{weight.flax}"
        yield Leaf(path, weight.flax_shape(sizes), head.folder, (weight.torch,), weight, sizes)


def classifier_leaves(spec: ModelSpec, prefix: str) -> Iterator[Leaf]:
    """The leaves of a reranker's head, in the encoder's files; the pooler's torch names have the encoder's prefix."""
    scorer, hidden = spec.architecture.scorer, spec.config.hidden_size
    assert scorer
    sizes = {"D": hidden, "P": hidden, "E": CLASSIFIER.dim}
    for before, weights in ((prefix, scorer.pooler), ("", scorer.classifier)):
        for weight in weights:
            path = f"heads/{CLASSIFIER.folder}/{weight.flax}"
            yield Leaf(path, weight.flax_shape(sizes), spec.transformer, (before + weight.torch,), weight, sizes)


def all_leaves(spec: ModelSpec, prefix: str) -> Iterator[Leaf]:
    """The leaves of the encoder and of all heads."""
    yield from encoder_leaves(spec, prefix)
    if spec.is_reranker:
        yield from classifier_leaves(spec, prefix)
    else:
        for head in spec.heads.values():
            yield from head_leaves(head, spec.config.hidden_size)


def passthrough_leaf(spec: ModelSpec, name: str, shape: tuple[int, ...]) -> Leaf:
    """The leaf of a tensor that is kept but not used."""
    return Leaf("passthrough/" + name.replace(".", "/"), shape, spec.transformer, (name,), None, {})


class TorchWeights:
    """The weights of a directory in the PyTorch layout; opening it checks names, shapes and dtypes, and reads none.

    Raises:
      StellaError: lists every tensor that is missing, unknown, duplicate, or has a wrong shape or dtype.
    """

    def __init__(self, directory: Directory, spec: ModelSpec):
        self.leaves: dict[str, Leaf] = {}
        self.dtypes: dict[str, np.dtype] = {}
        self.headers: dict[str, str] = {}
        self._tensors: dict[tuple[str, str], Tensor] = {}
        shards, tensors = self._open(directory, spec.transformer)
        self.prefix = _prefix(spec, tensors)
        _check_labels(spec, tensors)
        leaves = [*all_leaves(spec, self.prefix)]
        used = {name for leaf in leaves for name in leaf.torch_names}
        passthrough = [name for name in spec.architecture.passthrough if name in tensors and name not in used]
        leaves += [passthrough_leaf(spec, name, tensors[name].shape) for name in passthrough]
        for folder in dict.fromkeys(leaf.folder for leaf in leaves):
            if folder != spec.transformer:
                shards, tensors = self._open(directory, folder)
            self._add(shards, folder, tensors, [leaf for leaf in leaves if leaf.folder == folder])

    def read(self, path: str) -> np.ndarray:
        """One leaf, contiguous, in its stored dtype.

        Raises:
          StellaError: it holds NaN or infinity.
        """
        leaf = self.leaves[path]
        array = aligned(leaf.shape, self.dtypes[path])
        in_threads(
            lambda i: copy(self.layer(path, i), array[i] if leaf.stacked else array),
            len(leaf.torch_names),
        )
        return array

    def layer(self, path: str, number: int) -> np.ndarray:
        """One layer of a leaf (number 0 is the whole leaf if it is not stacked): a view of the mapped file.

        Raises:
          StellaError: it holds NaN or infinity.
        """
        leaf = self.leaves[path]
        name = leaf.torch_names[number]
        tensor = self._tensors[leaf.folder, name].array()
        check_finite(tensor, name)
        return tensor if leaf.weight is None else leaf.weight.to_flax(tensor, leaf.sizes)

    def _open(self, directory: Directory, folder: str) -> tuple[list[Shard], dict[str, Tensor]]:
        shards = open_shards(directory, folder)
        self.headers |= {shard.path.relative_to(directory.root).as_posix(): shard.header for shard in shards}
        return shards, {tensor.name: tensor for shard in shards for tensor in shard.tensors}

    def _add(self, shards: list[Shard], folder: str, tensors: dict[str, Tensor], leaves: list[Leaf]) -> None:
        """Checks a module's tensors against its leaves, and adds the leaves."""
        _check(shards, tensors, leaves)
        self._tensors |= {(folder, name): tensor for name, tensor in tensors.items()}
        for leaf in leaves:
            self.leaves[leaf.path] = leaf
            self.dtypes[leaf.path] = DTYPES[tensors[leaf.torch_names[0]].dtype]


def _prefix(spec: ModelSpec, tensors: Iterable[str]) -> str:
    """The prefix of the encoder's torch names."""
    known = spec.architecture.prefixes
    return next((prefix for prefix in known if any(name.startswith(prefix) for name in tensors)), "")


def _check_labels(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> None:
    """Refuses a reranker with several labels, which do not give a single score."""
    scorer = spec.architecture.scorer if spec.is_reranker else None
    for weight in scorer.classifier if scorer else ():
        shape: tuple[int, ...] = tensors[weight.torch].shape if weight.torch in tensors else ()
        labels = shape[0] if shape else CLASSIFIER.dim
        if labels != CLASSIFIER.dim:
            raise StellaError(
                f"{weight.torch}: {labels} rows (num_labels = {labels}) are not supported; pass a reranker with one "
                "label."
            )


def check_finite(array: np.ndarray, name: str) -> None:
    """Refuses NaN and infinity. If the sum is finite, so is every term: usually one fast pass is enough."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = (array.dtype == np.float32 and np.isfinite(array.sum())) or np.isfinite(array).all()
    if not finite:
        raise StellaError(f"{name}: holds NaN or infinity; the checkpoint is damaged, or its training diverged.")


def _check(shards: list[Shard], tensors: dict[str, Tensor], leaves: list[Leaf]) -> None:
    """Raises one error with all faults of a module's tensors."""
    expected = {name: leaf.torch_shape() for leaf in leaves for name in leaf.torch_names}
    counts = Counter(tensor.name for shard in shards for tensor in shard.tensors)
    faults = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    faults += [f"unknown: {name}" for name in tensors if name not in expected]
    faults += [f"duplicate: {name}" for name, count in counts.items() if count > 1]
    for name in expected.keys() & tensors.keys():
        if tensors[name].shape != expected[name]:
            faults.append(f"shape: {name} is {list(tensors[name].shape)}, config.json says {list(expected[name])}")
        if tensors[name].dtype not in DTYPES:
            faults.append(f"dtype: {name} is {tensors[name].dtype}; supported: F32, F16 and BF16")
    for leaf in leaves:
        dtypes = {tensors[name].dtype for name in leaf.torch_names if name in tensors}
        if len(dtypes) > 1:
            faults.append(f"dtype: the layers of {leaf.path} are stored as {' and '.join(sorted(dtypes))}")
    raise_faults(f"{shards[0].path.parent}: the tensors do not fit config.json:", faults)


def raise_faults(title: str, faults: list[str]) -> None:
    """Raises one error that lists the faults, at most forty of them; does nothing without faults."""
    if faults:
        lines = sorted(faults) if len(faults) <= 40 else [*sorted(faults)[:40], f"... and {len(faults) - 40} more"]
        raise StellaError("\n  ".join([title, *(fault.replace("\n", "\\n") for fault in lines)]))
