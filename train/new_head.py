"""A new Dense head for a checkpoint."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.directory import write_json
from stella_jax.checkpoint.modules_json import OLD_POOLING_FLAGS, POOLINGS
from stella_jax.checkpoint.weights import Leaf, Weights, head_leaves
from stella_jax.models.heads import Head
from train.sections import NewHeadSection


class WithHead:
    """A checkpoint's weights with one more head in float32, which replaces any in the same folder."""

    def __init__(self, base: Weights, leaves: dict[str, Leaf], arrays: dict[str, np.ndarray]):
        self._base, self._arrays = base, arrays
        folders = {leaf.folder for leaf in leaves.values()}
        self.leaves: dict[str, Leaf] = {
            p: leaf for p, leaf in base.leaves.items() if leaf.folder not in folders
        } | leaves
        self.dtypes: dict[str, np.dtype] = base.dtypes | dict.fromkeys(arrays, np.dtype(np.float32))
        self.prefix, self.headers = base.prefix, base.headers

    def read(self, path: str) -> np.ndarray:
        """One leaf, contiguous."""
        return self._arrays[path] if path in self._arrays else self._base.read(path)


def with_new_head(base: Checkpoint, section: NewHeadSection, seed: int) -> Checkpoint:
    """The checkpoint with a new default head, which replaces one of the same dimension.

    It is initialized as torch's Linear: uniform in +-1 / sqrt(hidden_size).
    """
    folder = f"2_Dense_{section.dim}"
    activation: Any = section.activation
    head = Head(folder, section.dim, section.bias, activation)
    hidden, rng = base.spec.config.hidden_size, np.random.default_rng(seed)
    leaves = {leaf.path: leaf for leaf in head_leaves(head, hidden)}
    bound = 1 / np.sqrt(hidden)
    arrays = {path: rng.uniform(-bound, bound, leaf.shape).astype(np.float32) for path, leaf in leaves.items()}
    spec = dataclasses.replace(
        base.spec,
        heads={dim: old for dim, old in base.spec.heads.items() if dim != section.dim} | {section.dim: head},
        default_dim=section.dim,
        pooling=next((known for known in POOLINGS if known == section.pooling), base.spec.pooling),
    )
    return dataclasses.replace(base, spec=spec, weights=WithHead(base.weights, leaves, arrays))


def write_new_head(base: Checkpoint, working: Path) -> None:
    """Writes a new head's config.json into a saved directory, and the pooling's if its mode changed."""
    head = base.spec.head(None)
    assert head
    activation = {"identity": "torch.nn.modules.linear.Identity", "tanh": "torch.nn.modules.activation.Tanh"}
    fields = {
        "in_features": base.spec.config.hidden_size,
        "out_features": head.dim,
        "bias": head.bias,
        "activation_function": activation[head.activation],
    }
    (working / head.folder).mkdir(exist_ok=True)
    write_json(working / head.folder / "config.json", fields)
    modules = json.loads((working / "modules.json").read_bytes())
    folder = next(str(m["path"]) for m in modules if str(m["type"]).endswith("Pooling"))
    pooling = working / folder / "config.json"
    before = json.loads(pooling.read_bytes())
    if (after := _with_pooling(before, base.spec.pooling)) != before:
        write_json(pooling, after)


def _with_pooling(fields: dict[str, Any], mode: str) -> dict[str, Any]:
    """A pooling's config.json, of either schema, with this mode."""
    if "pooling_mode" in fields:
        return fields | {"pooling_mode": mode}
    flags = [name for name in fields if name.startswith("pooling_mode_")]
    flags += [name for name, known in OLD_POOLING_FLAGS.items() if known == mode]
    return fields | {name: OLD_POOLING_FLAGS.get(name) == mode for name in flags}
