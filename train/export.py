"""The trained model as a checkpoint that sentence-transformers, `Stella` and `convert` load, with its card.

What was not trained keeps its bits; what was is float32. Where the base's own config.json is one that transformers
cannot load without remote code, names and config are spelt as transformers spells them.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stella_jax.checkpoint import Checkpoint
from stella_jax.heads import Head
from stella_jax.torch_layout import to_torch
from stella_jax.weights import Leaf, Weights
from train import curves
from train.card import Origin, card
from train.metrics import Metrics
from train.params import Params

PROVENANCE = "training.json"
DENSE = "sentence_transformers.models.Dense"


@dataclass(frozen=True, slots=True)
class Trained:
    """A checkpoint, the head that was trained through, if any, and the parameters that were trained, by name."""

    base: Checkpoint
    head: Head | None
    params: Params

    @property
    def stale_heads(self) -> list[str]:
        """Folders of heads that belong to the encoder as it was before, by their dimension."""
        moved = any(name.startswith("encoder/") for name in self.params)
        heads = self.base.layout.heads
        return [heads[dim].folder for dim in sorted(heads) if moved and heads[dim] != self.head]


class TrainedWeights:
    """A checkpoint's weights with what was trained in place of its own, float32."""

    def __init__(self, base: Weights, head: Head | None, params: Params):
        folder = f"heads/{head.folder}/" if head else ""
        own = {name if name.startswith("encoder/") else folder + name.removeprefix("head/"): name for name in params}
        self.leaves: dict[str, Leaf] = base.leaves
        self.dtypes: dict[str, np.dtype] = base.dtypes | dict.fromkeys(own, np.dtype(np.float32))
        self.prefix: str = base.prefix
        self._base, self._names, self._params = base, own, params

    def read(self, path: str) -> np.ndarray:
        """One leaf, contiguous."""
        name = self._names.get(path)
        return self._base.read(path) if name is None else np.ascontiguousarray(self._params[name])


def export(trained: Trained, origin: Origin, metrics: Metrics, destination: Path) -> None:
    """Writes the model in place of what is at `destination`, which is there whole at any time.

    Raises:
      StellaError: the disk is full.
    """
    working = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(working, ignore_errors=True)
    base = trained.base
    weights = TrainedWeights(base.weights, trained.head, trained.params)
    to_torch(dataclasses.replace(base, weights=weights), working, native=not _is_native(base))
    _write_config(base, working)
    if trained.head:
        _write_json(working / "modules.json", _modules(base.directory.json("modules.json"), trained.head))
    has_curves = curves.draw(metrics, working / curves.FILE)
    text = card(origin, metrics, base.layout, trained.head, trained.stale_heads, has_curves)
    (working / "README.md").write_text(text, encoding="utf-8")
    _write_json(working / PROVENANCE, origin.as_dict())
    _replace(destination, working)


def is_exported(destination: Path, origin: Origin) -> bool:
    """Whether what is at `destination` is the model of this origin."""
    try:
        return json.loads((destination / PROVENANCE).read_bytes()) == origin.as_dict()
    except (OSError, ValueError):
        return False


def _is_native(base: Checkpoint) -> bool:
    fields = base.directory.json_object(base.layout.file("config.json"))
    return fields.get("model_type") == "gte" and fields.get("rope_parameters") is not None


def _write_config(base: Checkpoint, working: Path) -> None:
    """Says that all of it is to be computed in float32, also where frozen weights are stored in less."""
    path = working / base.layout.file("config.json")
    _write_json(path, json.loads(path.read_bytes()) | {"torch_dtype": "float32", "dtype": "float32"})


def _modules(listing: list[dict[str, Any]], head: Head) -> list[dict[str, Any]]:
    """modules.json with this head in place of the one it names, or after the pooling."""
    kinds = [str(module["type"]).rpartition(".")[2] for module in listing]
    if "Dense" in kinds:
        return [m | {"path": head.folder} if kind == "Dense" else m for m, kind in zip(listing, kinds, strict=True)]
    place = kinds.index("Pooling") + 1
    listing = [*listing[:place], {"path": head.folder, "type": DENSE}, *listing[place:]]
    return [module | {"idx": i, "name": str(i)} for i, module in enumerate(listing)]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _replace(destination: Path, working: Path) -> None:
    old = destination.with_name(f".{destination.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        destination.rename(old)
    working.rename(destination)
    shutil.rmtree(old, ignore_errors=True)
