"""Training: `python -m train RECIPE.toml`, or its parts in your own training loop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train import losses, optimizers
    from train.batches import Batcher
    from train.step import StepConfig, make_step

__all__ = ["Batcher", "StepConfig", "losses", "make_step", "optimizers"]

# Imported on first use, so that --help does not wait for JAX.
_MODULES = {"Batcher": "train.batches", "StepConfig": "train.step", "make_step": "train.step"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name in __all__:
        return import_module(f"train.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
