"""Writes the Flax layout: Orbax parameters, the checkpoint's other files, and provenance.json."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from stella_jax import __version__
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.directory import write_json
from stella_jax.checkpoint.flax_weights import PROVENANCE, FlaxWeights
from stella_jax.checkpoint.hashes import hashed, sha256_of_array
from stella_jax.checkpoint.orbax_store import PARAMS, finish_saving, save_leaf
from stella_jax.checkpoint.side_files import copy_side_files, side_files
from stella_jax.checkpoint.torch_layout import OnLeaf
from stella_jax.checkpoint.weights import TorchWeights
from stella_jax.storage.new_directory import new_directory

PACKAGES = ("jax", "flax", "orbax-checkpoint", "numpy", "safetensors")


def to_flax(
    source: Checkpoint,
    name: str,
    destination: Path,
    *,
    accept_changes: bool = False,
    on_leaf: OnLeaf = lambda path: None,
) -> None:
    """Converts a checkpoint into a new directory, with one leaf in memory at a time.

    Args:
      source: an opened checkpoint in either layout; see `Checkpoint.open`.
      name: the user's name of the source, for provenance.json.
      destination: the directory to write.
      accept_changes: accept leaves whose hash differs from that in provenance.json.
      on_leaf: called with the path of each written leaf.

    Raises:
      StellaError: a tensor is damaged, a leaf has changed since its conversion, the destination exists, or the disk is
        full. Nothing is left behind.
    """
    weights = source.weights
    sizes = {path: int(np.prod(leaf.shape)) * weights.dtypes[path].itemsize for path, leaf in weights.leaves.items()}
    with new_directory(destination, needed=sum(sizes.values())) as working:
        leaves = {}
        for path in sorted(weights.leaves, key=lambda path: -sizes[path]):  # largest first, before memory is fragmented
            array = weights.read(path)
            sha256 = sha256_of_array(array)
            if isinstance(weights, FlaxWeights) and not accept_changes:
                weights.check_unchanged(path, sha256)
            leaves[path] = {"shape": array.shape, "dtype": array.dtype.name, "sha256": sha256}
            save_leaf(working / PARAMS, path, array)
            del array
            on_leaf(path)
        finish_saving(working / PARAMS)
        copy_side_files(source.directory, working)
        provenance = _provenance(source, name) | {"leaves": dict(sorted(leaves.items()))}
        write_json(working / PROVENANCE, provenance)


def _provenance(source: Checkpoint, name: str) -> dict[str, Any]:
    weights = source.weights
    if isinstance(weights, FlaxWeights):
        kept = {key: weights.provenance.get(key) for key in ("source", "prefix", "files", "headers")}
        return {"format": 1, **kept, "versions": _versions()}
    assert isinstance(weights, TorchWeights)
    headers = weights.headers
    return {
        "format": 1,
        "source": name,
        "prefix": weights.prefix,
        "files": hashed(source.directory, [*headers, *side_files(source.directory)]),
        "headers": headers,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {"stella-jax": __version__} | {package: version(package) for package in PACKAGES}
