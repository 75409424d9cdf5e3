"""The table that a dry run prints: how tensors are mapped."""

from collections.abc import Iterator

import numpy as np

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.side_files import left_behind, side_files


def mapping_table(source: Checkpoint) -> Iterator[str]:
    """The lines of the table (torch name, shape and dtype -> leaf and shape), totals, and files."""
    leaves = source.weights.leaves
    rows = []
    for path, leaf in leaves.items():
        name = leaf.torch_names[0]
        if len(leaf.torch_names) > 1:
            name = name.replace(".0.", f".{{0..{len(leaf.torch_names) - 1}}}.", 1)
        shapes = [str(list(shape)) for shape in (leaf.torch_shape(), leaf.shape)]
        rows.append((f"{leaf.folder}/{name}".lstrip("/"), shapes[0], source.weights.dtypes[path].name, path, shapes[1]))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        torch, shape, dtype, path, stacked = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield f"{torch}  {shape} {dtype}  ->  {path}  {stacked}".rstrip()
    numbers = {path: int(np.prod(leaf.shape)) for path, leaf in leaves.items()}
    encoder = sum(count for path, count in numbers.items() if path.startswith("encoder/"))
    size = sum(count * source.weights.dtypes[path].itemsize for path, count in numbers.items())
    heads = sum(numbers.values()) - encoder
    yield f"{encoder:,} parameters in the encoder, {heads:,} in heads; {size / 2**20:,.1f} MiB"
    yield f"copied: {', '.join(side_files(source.directory)) or 'nothing'}"
    yield f"not copied: {', '.join(left_behind(source.directory)) or 'nothing'}"
