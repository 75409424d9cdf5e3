"""Any checkpoint -> the Flax layout: Orbax parameters, the files beside the weights, and where all of it came from."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from convert.destination import new_directory
from convert.hashes import hashed, sha256_of_array
from convert.side_files import copy_side_files, side_files
from stella_jax import __version__
from stella_jax.checkpoint import Checkpoint
from stella_jax.flax_weights import PROVENANCE, FlaxWeights
from stella_jax.params import PARAMS, finish_saving, save_leaf
from stella_jax.weights import TorchWeights

PACKAGES = ("jax", "flax", "orbax-checkpoint", "numpy", "safetensors")

Progress = Callable[[str], object]


def to_flax(source: Checkpoint, name: str, destination: Path, progress: Progress = lambda path: None) -> None:
    """Writes `source` into the new directory `destination`, one leaf in memory at a time.

    Args:
      source: an opened checkpoint in either layout.
      name: what the user called it; goes into provenance.json.
      progress: called with the path of each leaf written.

    Raises:
      StellaError: the destination exists, the disk is full, or a tensor is damaged; nothing is left behind.
    """
    weights = source.weights
    sizes = {path: int(np.prod(leaf.shape)) * weights.dtypes[path].itemsize for path, leaf in weights.leaves.items()}
    with new_directory(destination, needed=sum(sizes.values())) as working:
        leaves = {}
        for path in sorted(weights.leaves, key=lambda path: -sizes[path]):  # largest first, while memory is unbroken
            array = weights.read(path)
            leaves[path] = {"shape": array.shape, "dtype": array.dtype.name, "sha256": sha256_of_array(array)}
            save_leaf(working / PARAMS, path, array)
            del array
            progress(path)
        finish_saving(working / PARAMS)
        copy_side_files(source.directory, working)
        provenance = _provenance(source, name) | {"leaves": dict(sorted(leaves.items()))}
        (working / PROVENANCE).write_text(json.dumps(provenance, indent=1))


def _provenance(source: Checkpoint, name: str) -> dict[str, Any]:
    weights = source.weights
    if isinstance(weights, FlaxWeights):
        kept = {key: weights.provenance.get(key) for key in ("source", "prefix", "files", "headers")}
        return {"format": 1, **kept, "versions": _versions()}
    assert isinstance(weights, TorchWeights)
    shards = {_name(shard.path, source): shard for shards in weights.shards.values() for shard in shards}
    return {
        "format": 1,
        "source": name,
        "prefix": weights.prefix,
        "files": hashed(source.directory, [*shards, *side_files(source.directory)]),
        "headers": {file: shard.header for file, shard in shards.items()},
        "versions": _versions(),
    }


def _name(path: Path, source: Checkpoint) -> str:
    return path.relative_to(source.directory.root).as_posix()


def _versions() -> dict[str, str]:
    return {"stella-jax": __version__} | {package: version(package) for package in PACKAGES}
