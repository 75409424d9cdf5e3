"""A PyTorch checkpoint's weights, as leaves of the parameter tree.

Leaf paths: `encoder/...` as in `names.ENCODER`, `heads/<folder>/{kernel,bias}`, `carried/...` for tensors that are kept
but not used. A leaf of the layers holds all of them, stacked.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stella_jax.directory import Directory
from stella_jax.errors import StellaError
from stella_jax.heads import Head
from stella_jax.layout import Layout
from stella_jax.names import CARRIED, HEAD, PREFIX, Sizes, Weight, encoder_sizes, encoder_weights
from stella_jax.shards import DTYPES, Shard, Tensor, open_shards, tensors_by_name


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf and the torch tensors it is made of, one a layer where it is stacked.

    `folder` is the module whose files hold them, `weight` the table row, None for tensors carried along as they are.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    folder: str
    torch_names: tuple[str, ...]
    weight: Weight | None
    sizes: Sizes


def encoder_leaves(layout: Layout, prefix: str, dtypes: dict[str, str]) -> Iterator[Leaf]:
    """The leaves of the encoder, from the dtype of each torch tensor."""
    sizes = encoder_sizes(layout.config)
    for weight in encoder_weights(layout.config):
        layers = range(sizes["L"]) if weight.stacked else [0]
        names = tuple(prefix + weight.torch.format(i=i) for i in layers)
        shape = weight.flax_shape(sizes)
        yield Leaf(
            path=f"encoder/{weight.flax}",
            shape=(len(names), *shape) if weight.stacked else shape,
            dtype=DTYPES[dtypes[names[0]]],
            folder=layout.transformer,
            torch_names=names,
            weight=weight,
            sizes=sizes,
        )


def head_leaves(head: Head, hidden: int, dtypes: dict[str, str]) -> Iterator[Leaf]:
    """The leaves of a Dense head."""
    sizes = {"D": hidden, "E": head.dim}
    for weight in head_weights(head):
        yield Leaf(
            path=f"heads/{head.folder}/{weight.flax}",
            shape=weight.flax_shape(sizes),
            dtype=DTYPES[dtypes[weight.torch]],
            folder=head.folder,
            torch_names=(weight.torch,),
            weight=weight,
            sizes=sizes,
        )


def head_weights(head: Head) -> tuple[Weight, ...]:
    return HEAD if head.bias else HEAD[:1]


class TorchWeights:
    """The weights of a directory in the PyTorch layout; opening it checks names, shapes and dtypes, and reads nothing.

    Raises:
      StellaError: one error that lists every tensor that is missing, unknown, duplicate, or of a wrong shape or dtype.
    """

    def __init__(self, directory: Directory, layout: Layout):
        self.shards: dict[str, list[Shard]] = {layout.transformer: open_shards(directory, layout.transformer)}
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self.leaves: dict[str, Leaf] = {}
        self._add_encoder(layout)
        for head in layout.heads.values():
            self.shards[head.folder] = open_shards(directory, head.folder)
            self._add_head(head, layout.config.hidden_size)

    def read(self, path: str) -> np.ndarray:
        """One leaf, contiguous, in its stored dtype.

        Raises:
          StellaError: it holds NaN or infinity.
        """
        leaf = self.leaves[path]
        out = np.empty(leaf.shape, leaf.dtype)
        for i, name in enumerate(leaf.torch_names):
            tensor = self._tensors[leaf.folder, name].array()
            check_finite(tensor, name)
            view = tensor if leaf.weight is None else leaf.weight.to_flax(tensor, leaf.sizes)
            out[i if leaf.weight and leaf.weight.stacked else ...] = view
        return out

    def _add_encoder(self, layout: Layout) -> None:
        tensors, duplicates = tensors_by_name(self.shards[layout.transformer])
        prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
        sizes = encoder_sizes(layout.config)
        expected = {
            prefix + weight.torch.format(i=i): weight.torch_shape(sizes)
            for weight in encoder_weights(layout.config)
            for i in range(layout.config.num_hidden_layers if weight.stacked else 1)
        }
        _check(str(self.shards[layout.transformer][0].path.parent), tensors, duplicates, expected, optional=CARRIED)
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self._add(tensors, layout.transformer, encoder_leaves(layout, prefix, dtypes))
        carried = (_carried(tensors[name], layout.transformer) for name in CARRIED if name in tensors)
        self._add(tensors, layout.transformer, carried)

    def _add_head(self, head: Head, hidden: int) -> None:
        tensors, duplicates = tensors_by_name(self.shards[head.folder])
        sizes = {"D": hidden, "E": head.dim}
        expected = {weight.torch: weight.torch_shape(sizes) for weight in head_weights(head)}
        _check(str(self.shards[head.folder][0].path), tensors, duplicates, expected)
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        self._add(tensors, head.folder, head_leaves(head, hidden, dtypes))

    def _add(self, tensors: dict[str, Tensor], folder: str, leaves: Iterator[Leaf]) -> None:
        self._tensors |= {(folder, name): tensor for name, tensor in tensors.items()}
        self.leaves |= {leaf.path: leaf for leaf in leaves}
        _check_one_dtype_a_leaf(self.leaves.values(), self._tensors)


def check_finite(array: np.ndarray, name: str) -> None:
    """Refuses NaN and infinity. The sum is finite unless a term is not (or, rarely, it overflows): one fast pass."""
    if array.dtype == np.float32 and np.isfinite(array.sum()):
        return
    if not np.isfinite(array).all():
        raise StellaError(f"tensor {name} holds NaN or infinity; the checkpoint is damaged or its training diverged.")


def _carried(tensor: Tensor, folder: str) -> Leaf:
    path = "carried/" + tensor.name.replace(".", "/")
    return Leaf(path, tensor.shape, DTYPES[tensor.dtype], folder, (tensor.name,), None, {})


def _check(where: str, tensors: dict[str, Tensor], duplicates: list[str], expected: dict, optional: tuple = ()) -> None:
    """Compares what is there with what must be; lists every fault at once."""
    faults = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in tensors]
    faults += [f"unknown: {name}" for name in tensors if name not in expected and name not in optional]
    faults += [f"duplicate: {name}" for name in duplicates]
    faults += [
        f"shape: {name} is {list(tensors[name].shape)}, config.json says {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    faults += [f"dtype: {name} is {t.dtype}; F32, F16 and BF16 are read" for name, t in tensors.items() if t.dtype not in DTYPES]
    if faults:
        shown = faults if len(faults) <= 40 else [*faults[:40], f"... and {len(faults) - 40} more"]
        raise StellaError("\n  ".join([f"the tensors in {where} do not fit its config.json:", *shown]))


def _check_one_dtype_a_leaf(leaves, tensors: dict[tuple[str, str], Tensor]) -> None:
    for leaf in leaves:
        found = {tensors[leaf.folder, name].dtype for name in leaf.torch_names}
        if len(found) > 1:
            raise StellaError(f"the layers of {leaf.path} are stored in several dtypes ({', '.join(sorted(found))}).")
