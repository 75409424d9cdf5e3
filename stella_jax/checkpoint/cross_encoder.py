"""Reads a reranker's settings from where sentence-transformers' CrossEncoder writes them."""

from collections.abc import Mapping
from typing import Any

from stella_jax.checkpoint.directory import SETTINGS
from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.models import class_name
from stella_jax.models.heads import CLASSIFIER
from stella_jax.option_values import ScoreActivation

# torch's class -> our name.
SCORES: dict[str, ScoreActivation] = {"Sigmoid": "sigmoid", "Identity": "none"}


def reranker_fields(
    modules: Mapping[str, str], fields: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of a reranker's `ModelSpec`; its head is in the encoder's files."""
    if more := [kind for kind in modules if kind != "Transformer"]:
        raise StellaError(
            f"modules.json: lists {join_words(more)}, but config.json's {class_name(fields)} is a reranker; one of the "
            "two files belongs to another checkpoint."
        )
    _check_one_label(fields)
    if settings.get("default_prompt_name") is not None:
        name = short_repr(settings["default_prompt_name"])
        raise StellaError(f"{SETTINGS}: default_prompt_name = {name} is not supported for a reranker; supported: null.")
    return {
        "pooling": "cls",
        "heads": {CLASSIFIER.dim: CLASSIFIER},
        "default_dim": CLASSIFIER.dim,
        "normalize": False,
        "prompts": {},
        "default_prompt_name": None,
        "similarity": "cosine",
        "score_activation": _score_activation(settings, fields),
    }


def _check_one_label(fields: Mapping[str, Any]) -> None:
    labels = fields.get("id2label")
    count = fields.get("num_labels", len(labels) if isinstance(labels, Mapping) else 1)
    if count != 1:
        raise StellaError(
            f"config.json: num_labels = {short_repr(count)} is not supported for a reranker; supported: 1."
        )


def _score_activation(settings: Mapping[str, Any], fields: Mapping[str, Any]) -> ScoreActivation:
    """The activation of CrossEncoder, which sentence-transformers 6, 4 and 3 write to three different places."""
    older = fields.get("sentence_transformers")
    places = {
        f"{SETTINGS}: activation_fn": settings.get("activation_fn"),
        "config.json: sentence_transformers.activation_fn": isinstance(older, Mapping) and older.get("activation_fn"),
        "config.json: sbert_ce_default_activation_function": fields.get("sbert_ce_default_activation_function"),
    }
    where, name = next(((where, name) for where, name in places.items() if name), ("", "Sigmoid"))
    last = str(name).rpartition(".")[2]
    if last not in SCORES:
        raise StellaError(f"{where} = {short_repr(name)} is not supported; supported: {join_words(SCORES)}.")
    return SCORES[last]
