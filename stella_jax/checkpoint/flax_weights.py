"""The weights of a converted directory: Orbax parameters with the same leaf paths as `weights.TorchWeights`."""

from typing import Any

import numpy as np

from stella_jax.checkpoint.directory import Directory
from stella_jax.checkpoint.model_spec import ModelSpec
from stella_jax.checkpoint.orbax_store import PARAMS, StoredLeaf, stored_leaves
from stella_jax.checkpoint.weights import Leaf, all_leaves, check_finite, passthrough_leaf, raise_faults
from stella_jax.errors import StellaError, short_repr

# Written by `convert` beside the parameters: their source, and a hash of each leaf.
PROVENANCE = "provenance.json"


class FlaxWeights:
    """The weights of a directory that `convert` wrote; opening it checks paths and shapes, and reads no weights.

    Raises:
      StellaError: lists every leaf that is missing, unknown, or has a wrong shape or dtype.
    """

    def __init__(self, directory: Directory, spec: ModelSpec):
        self._params = directory.path(PARAMS)
        self.provenance = _provenance(directory)
        self.prefix = str(self.provenance.get("prefix", ""))
        self.headers: dict[str, str] = self.provenance["headers"]
        stored = stored_leaves(directory)
        leaves = [*all_leaves(spec, self.prefix)]
        for name, leaf in stored.items():
            section, _, name = name.partition(".")
            if section == "passthrough":
                leaves.append(passthrough_leaf(spec, name, leaf.shape))
        self.leaves: dict[str, Leaf] = {leaf.path: leaf for leaf in leaves}
        self._check(stored)
        self._stored = {path: stored[_name(path)] for path in self.leaves}
        self.dtypes: dict[str, np.dtype] = {path: leaf.dtype for path, leaf in self._stored.items()}

    @staticmethod
    def exists_in(directory: Directory) -> bool:
        """Whether a directory has this layout."""
        return directory.has(PROVENANCE) and directory.path(PARAMS).is_dir()

    def read(self, path: str) -> np.ndarray:
        """One leaf, contiguous, in its stored dtype: a view of the mapped file.

        Raises:
          StellaError: it holds NaN or infinity.
        """
        array = self._stored[path].array()
        check_finite(array, path)
        return array

    def check_unchanged(self, path: str, sha256: str) -> None:
        """Refuses a leaf whose hash is not the one in provenance.json.

        Raises:
          StellaError: the leaf has changed since the conversion.
        """
        if self.provenance["leaves"].get(path, {}).get("sha256") != sha256:
            raise StellaError(
                f"{path}: the sha256 differs from provenance.json, so the file is damaged or was changed; if you "
                "changed it, pass --accept-changes."
            )

    def _check(self, stored: dict[str, StoredLeaf]) -> None:
        expected = {_name(path): leaf for path, leaf in self.leaves.items()}
        faults = [f"missing: {leaf.path}" for name, leaf in expected.items() if name not in stored]
        faults += [f"unknown: {name}" for name in stored if name not in expected]
        for name in expected.keys() & stored.keys():
            leaf, found = expected[name], stored[name]
            if found.shape != leaf.shape:
                shapes = f"{short_repr([*found.shape])}, config.json says {[*leaf.shape]}"
                faults.append(f"shape: {leaf.path} is {shapes}")
        raise_faults(f"{self._params}: the parameters do not fit config.json:", faults)


def _name(path: str) -> str:
    """The name that a leaf is stored under."""
    return path.replace("/", ".")


def _provenance(directory: Directory) -> dict[str, Any]:
    """Reads provenance.json and checks the types of its values."""
    fields = directory.json_object(PROVENANCE)
    for key, kind in (("leaves", dict), ("files", dict), ("headers", str)):
        entries = fields.setdefault(key, {})
        if not isinstance(entries, dict) or not all(isinstance(entry, kind) for entry in entries.values()):
            raise StellaError(f"{directory.path(PROVENANCE)}: damaged ({key}); convert the checkpoint again.")
    return fields
