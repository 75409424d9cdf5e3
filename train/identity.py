"""Identity of a run, all that decides its bits: stored with each checkpoint, and compared when the run resumes."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax

from stella_jax import __version__
from stella_jax.checkpoint.differences import differences
from stella_jax.errors import StellaError
from train.data import Dataset
from train.recipe import Recipe
from train.sections import SetSection

# Keys of a recipe that do not change the trained bits; files count by their content.
FREE = {"": ("output", "model", "revision", "evaluators"), "loop": ("keep", "save_every", "export", "log")}

PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "numpy", "tokenizers")


def identity(recipe: Recipe, data: Mapping[str, Sequence[Dataset]], model: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe, hashes of each split's rows, and fingerprint of the initial model, as JSON values."""
    tree = recipe.as_dict()
    kept = {key: value for key, value in tree.items() if key not in FREE[""]}
    kept["loop"] = {key: value for key, value in tree["loop"].items() if key not in FREE["loop"]}
    del kept["data"]["sets"], kept["data"]["teachers"]
    kept["data"] |= {split: _rows(sets, recipe.data.sets_of(split)) for split, sets in data.items()}
    return kept | {"model": dict(model)}


def _rows(sets: Sequence[Dataset], sections: Sequence[SetSection]) -> dict[str, Any]:
    """Size, hash and weight of a split's rows; by set if there are several."""
    found = {
        each.name: {"rows": len(each), "sha256": each.sha256, "weight": section.weight}
        for each, section in zip(sets, sections, strict=True)
    }
    return found if len(found) > 1 else next(iter(found.values()))


def versions() -> dict[str, str]:
    """What else may change bits: versions of packages and Python, and the kind of device."""
    packages = {package: version(package) for package in PACKAGES}
    device = jax.devices()[0].device_kind
    return {"stella-jax": __version__} | packages | {"python": platform.python_version(), "device": device}


def changes(before: Mapping[str, str]) -> list[str]:
    """Differences between the versions that a run started with and the current ones, in words."""
    return list(differences(dict(before), versions()))


def check_same(before: Any, now: dict[str, Any], output: object) -> None:
    """Refuses to resume a run with another identity.

    Raises:
      StellaError: names every difference.
    """
    found = list(differences(before, now))
    if found:
        raise StellaError(
            f"{output}: started with a different recipe, model or data: {', '.join(found)}; use another output, or "
            "remove this one to start again."
        )
