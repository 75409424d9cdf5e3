"""A recipe's loss: a built-in by its name, or the user's own function as "my_module:my_loss"."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from stella_jax.errors import StellaError, join_words, short_repr
from train import losses
from train.recipe import LossSection


def find_loss(section: LossSection) -> losses.Loss:
    """The loss that a section names, with its arguments, wrapped by `matryoshka` where it names dimensions.

    Raises:
      StellaError: no such loss, or it cannot be imported.
    """
    loss = _own_loss(section.name) if ":" in section.name else _built_in(section.name)
    arguments = section.arguments()
    loss = partial(loss, **arguments) if arguments else loss
    if section.matryoshka_dims:
        return losses.matryoshka(loss, section.matryoshka_dims, section.matryoshka_weights)
    return loss


def _built_in(name: str) -> Callable[..., Any]:
    if name in losses.BUILT_IN:
        return losses.BUILT_IN[name]
    nearest = get_close_matches(name, losses.BUILT_IN, n=len(losses.BUILT_IN), cutoff=0.0)
    raise StellaError(
        f'loss.name: unknown loss {short_repr(name)}; choose {join_words(nearest)}, or "my_module:my_loss".'
    )


def _own_loss(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        with _working_directory_on_path():
            module = _import(module_name)
    except Exception as error:  # whatever the user's file raises
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, StellaError) else str(error)
        raise StellaError(f"loss.name: {short_repr(module_name)} cannot be imported ({reason}); fix it.") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise StellaError(
            f"loss.name: {module.__file__} has no function {short_repr(function_name)}; it has {join_words(there)}."
        )
    return function


def _import(name: str) -> ModuleType:
    """The module of this name, from its file in the working directory where there is one, else an installed one."""
    path = Path(*name.split(".")).with_suffix(".py").absolute()
    if not path.is_file():
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Modules beside the user's own can be imported by it; they come last, so that they hide nothing installed."""
    path = str(Path.cwd())
    sys.path.append(path)
    try:
        yield
    finally:
        sys.path.remove(path)
