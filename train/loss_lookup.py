"""Lookup of a recipe's loss: a built-in by name, or a user's function as "my_module:my_loss"."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from stella_jax.errors import StellaError, first_line, join_words, short_repr
from train import losses
from train.sections import LossSection


def find_loss(section: LossSection) -> losses.Loss:
    """The loss of a section with its arguments, wrapped by `matryoshka` if it has dimensions.

    Raises:
      StellaError: no such loss, or it cannot be imported.
    """
    spec, arguments, dims = loss_spec(section), section.arguments(), section.matryoshka_dims
    if dims and spec.own_prefixes:
        return partial(spec.function, **arguments, matryoshka_dims=dims)
    loss = partial(spec.function, **arguments) if arguments else spec.function
    return losses.matryoshka(loss, dims, section.matryoshka_weights) if dims else loss


def loss_arguments(section: LossSection) -> dict[str, Any]:
    """Keyword arguments of the loss: for a built-in all, defaults included; for a user's function the given ones."""
    if ":" in section.name:
        return section.arguments()
    parameters = signature(loss_spec(section).function).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY} | section.arguments()


def loss_spec(section: LossSection) -> losses.LossSpec:
    """The loss of a section and the columns that it needs; a user's function takes any number of texts.

    Raises:
      StellaError: no such loss, or it cannot be imported.
    """
    return losses.LossSpec(_own_loss(section.name), (1, None)) if ":" in section.name else _built_in(section.name)


def _built_in(name: str) -> losses.LossSpec:
    if name in losses.BUILT_IN:
        return losses.BUILT_IN[name]
    nearest = get_close_matches(name.lower(), losses.BUILT_IN, n=len(losses.BUILT_IN), cutoff=0.0)
    raise StellaError(
        f'loss.name: unknown loss {short_repr(name)}; choose {join_words(nearest)}, or "my_module:my_loss".'
    )


def _own_loss(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise StellaError(f'loss.name: {short_repr(name)} is not of the form "my_module:my_loss"; fix it.')
    try:
        module = _import(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        if isinstance(error, ModuleNotFoundError) and error.name == module_name:
            reason = f"no {short_repr(_path(module_name).name)} in the working directory, and no such package installed"
        else:
            reason = f"{type(error).__name__}: {first_line(error)[:300].rstrip('.')}"
        raise StellaError(
            f"loss.name: {short_repr(module_name)} cannot be imported ({reason}); fix the file or the name."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        nearest = get_close_matches(function_name, own, n=5, cutoff=0.0)
        raise StellaError(
            f"loss.name: {short_repr(module_name)} has no function {short_repr(function_name)}; it has "
            f"{join_words(nearest)}."
        )
    return function


def _path(name: str) -> Path:
    return Path(*name.split(".")).with_suffix(".py").absolute()


def _import(name: str) -> ModuleType:
    """Imports a module from the working directory if it is there, else an installed one.

    Its own imports may be in the working directory too, which comes last on the path so as to hide nothing installed.
    """
    path = _path(name)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    if not path.is_file():
        return importlib.import_module(name)
    # A loaded module of the same name, such as a package of ours, is not replaced.
    there = getattr(sys.modules.get(name), "__file__", None)
    taken = name in sys.modules and there != str(path)
    spec = importlib.util.spec_from_file_location(f"own_{name}" if taken else name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
