"""Prompts: texts by name that go before a text, and the default prompt of queries."""

from collections.abc import Mapping
from typing import Any

from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.tokenizer.tokenizer import check_text


def query_prompt_name(prompts: Mapping[str, str | None]) -> str | None:
    """The prompt name of queries: `query`, or else `s2p_query`; None if both are missing or empty."""
    return next((name for name in ("query", "s2p_query") if prompts.get(name)), None)


def with_query_prompt(settings: dict[str, Any]) -> dict[str, Any]:
    """config_sentence_transformers.json with the prompt of queries under the name `query` as well.

    sentence-transformers' `encode_query` uses only that name. Nothing else changes; without such a prompt, nothing at
    all.
    """
    prompts = settings.get("prompts") or {}
    name = query_prompt_name(prompts)
    return settings | {"prompts": prompts | {"query": prompts[name]}} if name else settings


def check_prompts(prompts: Any, where: str = "") -> dict[str, str]:
    """Checks prompts by name; None as a text becomes "".

    Raises:
      StellaError: they do not map names to texts; the error starts with `where`.
    """
    if not isinstance(prompts, Mapping) or not all(
        isinstance(name, str) and isinstance(text, str | None) for name, text in prompts.items()
    ):
        raise StellaError(f"{where}prompts must map names to texts.")
    return {name: check_text(text or "", f"{where}prompt {short_repr(name)}") for name, text in prompts.items()}


def check_default_prompt(name: Any, prompts: Mapping[str, str], where: str = "") -> str | None:
    """Checks that the default prompt is one of the prompts.

    Raises:
      StellaError: it is not; the error lists all.
    """
    if name is not None and (not isinstance(name, str) or name not in prompts):
        raise StellaError(
            f"{where}default_prompt_name = {short_repr(name)}: not one of the prompts ({join_words(prompts)})."
        )
    return name
