"""What a caller passes to `Stella`, checked: each mistake gets a sentence."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.pair_tokenizer import Pair
from stella_jax.tokenizer import check_text, describe

# What torch calls a device of JAX's platforms.
DEVICE_NAMES = {"gpu": ("gpu", "cuda")}

# The most that `batch_size` or `top_k` may be.
MOST_ROWS = 1_000_000


def check_texts(sentences: object, name: str = "sentences") -> list[str]:
    """The texts as a list; `name` is the argument's.

    Raises:
      StellaError: it is no list of str; says which element is what.
    """
    lone = isinstance(sentences, np.ndarray) and not sentences.ndim
    if lone or isinstance(sentences, bytes) or not isinstance(sentences, Sequence | np.ndarray):
        raise StellaError(f"{name} is {describe(sentences)}; pass a str or a list of str.")
    return [check_text(text, f"{name}[{i}]") for i, text in enumerate(sentences)]


def check_pairs(pairs: object) -> tuple[list[Pair], bool]:
    """The pairs as a list, and whether it was one pair by itself.

    Raises:
      StellaError: it is neither a pair of str nor a list of them; says which element is what.
    """
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Sequence | np.ndarray):
        raise StellaError(f"pairs is {describe(pairs)}; pass (query, text) or a list of such pairs.")
    if len(pairs) == 2 and all(isinstance(each, str) for each in pairs):
        return [_pair(pairs, "pair")], True
    return [_pair(pair, f"pairs[{i}]") for i, pair in enumerate(pairs)], False


def _pair(pair: object, where: str) -> Pair:
    if isinstance(pair, str | bytes) or not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
        raise StellaError(f"{where} is {describe(pair)}, not a pair; pass (query, text).")
    query, text = (check_text(each, f"{where}[{i}]") for i, each in enumerate(pair))
    return query, text


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise StellaError(f"unsupported {name} {short_repr(value)}; choose one of {join_words(choices)}.")


def check_whole(name: str, value: object, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= highest:
        raise StellaError(f"{name} {short_repr(value)} must be a whole number from 1 to {highest}.")


def check_flags(**flags: object) -> None:
    """Refuses flags that are arrays, whose truth is ambiguous, or texts."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_ | int | None):
            raise StellaError(f"{name} {short_repr(value)} must be True or False.")


def check_device(device: object, platform: str) -> None:
    """None, or a name of the platform that the model runs on anyway."""
    if device is not None and str(device).removesuffix(":0") not in DEVICE_NAMES.get(platform, (platform,)):
        raise StellaError(
            f"device {short_repr(device)}: the model runs on {platform}; leave it out, and choose devices with the "
            "mesh= of from_pretrained or with JAX_PLATFORMS."
        )


def check_no_processes(pool: object, chunk_size: object) -> None:
    """sentence-transformers shares texts among processes; here devices share them."""
    for name, value in (("pool", pool), ("chunk_size", chunk_size)):
        if value is not None:
            raise StellaError(f"{name}: there are no pools of processes; use the mesh= of from_pretrained.")


def check_not_traced(mesh: Mesh) -> None:
    """Texts cannot be traced, so embedding them cannot be a part of a transformed function."""
    try:
        with jax.set_mesh(mesh):
            pass
    except ValueError as error:  # the public sign of an open trace: a mesh can be set outside of one only
        raise StellaError(
            "encode: called inside of a function that JAX transforms (jit, grad, vmap); call it outside, and pass the "
            "embeddings to the function."
        ) from error
