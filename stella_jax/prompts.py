"""Prompts: the texts put before a text, by name, and which of them a query takes."""

from collections.abc import Mapping
from typing import Any

from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.tokenizer import check_text


def query_prompt_name(prompts: Mapping[str, str | None]) -> str | None:
    """The prompt of queries: `query`, or `s2p_query` where `query` is missing or empty; None where neither has text."""
    return next((name for name in ("query", "s2p_query") if prompts.get(name)), None)


def with_query_prompt(settings: dict[str, Any]) -> dict[str, Any]:
    """config_sentence_transformers.json as we write it for others: the prompt of queries is named `query` as well.

    sentence-transformers' `encode_query` knows that name alone. Nothing else changes; where there is nothing to name,
    the settings are equal to those passed.
    """
    prompts = settings.get("prompts") or {}
    name = query_prompt_name(prompts)
    return settings | {"prompts": prompts | {"query": prompts[name]}} if name else settings


def check_prompts(prompts: Any, where: str = "") -> dict[str, str]:
    """Prompts by name; None as a text is an empty one.

    Raises:
      StellaError: they do not map names to texts; `where` comes first in the sentence.
    """
    if not isinstance(prompts, dict) or not all(
        isinstance(name, str) and isinstance(text, str | None) for name, text in prompts.items()
    ):
        raise StellaError(f"{where}prompts must map names to texts.")
    return {name: check_text(text or "", f"{where}prompt {short_repr(name)}") for name, text in prompts.items()}


def check_default_prompt(name: Any, prompts: Mapping[str, str], where: str = "") -> str | None:
    """The name of the default prompt, if it is one of them.

    Raises:
      StellaError: it is not; lists those there are.
    """
    if name is not None and (not isinstance(name, str) or name not in prompts):
        raise StellaError(
            f"{where}default_prompt_name {short_repr(name)} is not one of its prompts ({join_words(prompts)})."
        )
    return name
