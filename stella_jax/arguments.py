"""Checks of the arguments that callers pass to `Stella` and `Reranker`."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import jax
import numpy as np
from jax.sharding import Mesh

from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.tokenizer.pair_tokenizer import Pair
from stella_jax.tokenizer.tokenizer import check_text, describe

# torch's names of JAX's platforms.
DEVICE_NAMES = {"gpu": ("gpu", "cuda")}

# Maximum of `batch_size` and `top_k`.
MAX_ROWS = 1_000_000


def check_texts(sentences: object, name: str = "sentences", expected: str = "a str or a list of str") -> list[str]:
    """The texts as a list; `name` is the argument's name, and `expected` what the caller accepts for it.

    Raises:
      StellaError: it is not a list of str; the error names the element.
    """
    if not _is_list(sentences):
        raise StellaError(f"{name}: expected {expected}, got {describe(sentences)}.")
    return [check_text(text, f"{name}[{i}]") for i, text in enumerate(sentences)]


def check_pairs(pairs: object) -> tuple[list[Pair], bool]:
    """The pairs as a list, and whether the argument was a single pair.

    Raises:
      StellaError: it is neither a pair of str nor a list of them; the error names the element.
    """
    if not _is_list(pairs):
        raise StellaError(f"pairs: expected (query, text) or a list of such pairs, got {describe(pairs)}.")
    if len(pairs) == 2 and all(isinstance(each, str) for each in pairs):
        return [_pair(pairs, "pair")], True
    return [_pair(pair, f"pairs[{i}]") for i, pair in enumerate(pairs)], False


def _is_list(value: object) -> TypeGuard[Sequence[Any] | np.ndarray]:
    """Whether it has elements in an order; str and bytes, whose elements are characters, do not count."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _pair(pair: object, where: str) -> Pair:
    if not _is_list(pair) or len(pair) != 2:
        raise StellaError(f"{where}: expected a pair (query, text), got {describe(pair)}.")
    query, text = (check_text(each, f"{where}[{i}]") for i, each in enumerate(pair))
    return query, text


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises StellaError if the argument `name` is not one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise StellaError(f"unsupported {name} {short_repr(value)}; choose {join_words(choices, 'or')}.")


def check_whole(name: str, value: object, highest: int) -> None:
    """Raises StellaError if the argument `name` is not a whole number from 1 to `highest`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= highest:
        raise StellaError(f"{name} must be a whole number from 1 to {highest}, not {short_repr(value)}.")


def check_flags(**flags: object) -> None:
    """Checks flags by name; an array, whose truth value is ambiguous, and a text are not flags."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_ | int | None):
            raise StellaError(f"{name} must be True or False, not {short_repr(value)}.")


def check_device(device: object, platform: str) -> None:
    """Accepts None, and a name of the platform that the model runs on anyway."""
    if device is not None and str(device).removesuffix(":0") not in DEVICE_NAMES.get(platform, (platform,)):
        raise StellaError(
            f"device {short_repr(device)}: the model runs on {platform}; leave device out, and choose devices with the "
            "mesh= of from_pretrained or with JAX_PLATFORMS."
        )


def check_no_processes(pool: object, chunk_size: object) -> None:
    """sentence-transformers spreads texts over processes; here a mesh spreads them over devices."""
    for name, value in (("pool", pool), ("chunk_size", chunk_size)):
        if value is not None:
            raise StellaError(f"{name}: process pools are not supported; use the mesh= of from_pretrained.")


def check_not_traced(mesh: Mesh) -> None:
    """Refuses a call inside a function that JAX traces: texts cannot be traced."""
    try:
        with jax.set_mesh(mesh):
            pass
    except ValueError as error:  # the only public sign of an open trace: a mesh cannot be set inside one
        raise StellaError(
            "encode: called inside a function that JAX transforms (jit, grad, vmap); call it outside, and pass the "
            "embeddings to the function."
        ) from error
