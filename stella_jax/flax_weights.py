"""The weights of a converted directory: Orbax parameters under the same leaf paths as `weights.TorchWeights`."""

from typing import Any

import numpy as np

from stella_jax.directory import Directory
from stella_jax.errors import StellaError
from stella_jax.layout import Layout
from stella_jax.params import PARAMS, leaf_types, load_leaf
from stella_jax.weights import Leaf, all_leaves, carried_leaf, check_finite, raise_faults

# What `convert` writes beside the parameters: where they came from, and a hash of each leaf.
PROVENANCE = "provenance.json"


class FlaxWeights:
    """The weights of a directory that `convert` wrote; opening it checks paths and shapes, and reads nothing.

    Raises:
      StellaError: one error that lists every leaf that is missing, unknown, or of a wrong shape or dtype.
    """

    def __init__(self, directory: Directory, layout: Layout):
        self._params = directory.path(PARAMS).resolve()
        self.provenance = _provenance(directory)
        self.prefix = str(self.provenance.get("prefix", ""))
        self.headers: dict[str, str] = self.provenance["headers"]
        types = leaf_types(self._params)
        leaves = [*all_leaves(layout, self.prefix)]
        for path, (shape, _) in types.items():
            section, _, name = path.partition("/")
            if section == "carried":
                leaves.append(carried_leaf(layout, name.replace("/", "."), shape))
        self.leaves: dict[str, Leaf] = {leaf.path: leaf for leaf in leaves}
        self._check(types)
        self.dtypes: dict[str, np.dtype] = {path: types[path][1] for path in self.leaves}

    @staticmethod
    def present(directory: Directory) -> bool:
        """Whether a directory is in this layout."""
        return directory.has(PROVENANCE) and directory.path(PARAMS).is_dir()

    def read(self, path: str) -> np.ndarray:
        """One leaf, contiguous, in its stored dtype.

        Raises:
          StellaError: it cannot be read, or holds NaN or infinity.
        """
        array = load_leaf(self._params, path, self.leaves[path].shape, self.dtypes[path])
        check_finite(array, path)
        return array

    def check_unchanged(self, path: str, sha256: str) -> None:
        """Refuses a leaf whose hash is not the one in provenance.json.

        Raises:
          StellaError: it has changed since it was converted.
        """
        if self.provenance["leaves"].get(path, {}).get("sha256") != sha256:
            raise StellaError(
                f"{path} is not what was converted (its sha256 differs from provenance.json): the file is damaged, or "
                "the parameters were changed; if you changed them, pass --accept-changes."
            )

    def _check(self, types: dict[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        faults = [f"missing: {path}" for path in self.leaves if path not in types]
        faults += [f"unknown: {path}" for path in types if path not in self.leaves]
        for path in self.leaves.keys() & types.keys():
            shape, dtype = types[path]
            if shape != self.leaves[path].shape:
                faults.append(f"shape: {path} is {list(shape)}, config.json says {list(self.leaves[path].shape)}")
            if dtype.name not in ("float32", "float16", "bfloat16"):
                faults.append(f"dtype: {path} is {dtype}; float32, float16 and bfloat16 are read")
        raise_faults(f"the parameters in {self._params} do not fit config.json:", faults)


def _provenance(directory: Directory) -> dict[str, Any]:
    """What `convert` wrote; those who read it rely on the kinds of its values."""
    fields = directory.json_object(PROVENANCE)
    for key, kind in (("leaves", dict), ("files", dict), ("headers", str)):
        entries = fields.setdefault(key, {})
        if not isinstance(entries, dict) or not all(isinstance(entry, kind) for entry in entries.values()):
            raise StellaError(f"{directory.path(PROVENANCE)} is damaged: {key} is not what convert writes.")
    return fields
