"""Reads a directory in the sentence-transformers layout: modules.json, the modules' configurations, and settings."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.checkpoint.cross_encoder import reranker_fields
from stella_jax.checkpoint.directory import SETTINGS, Directory
from stella_jax.checkpoint.model_spec import ModelSpec, check_similarity
from stella_jax.checkpoint.prompts import check_default_prompt, check_prompts
from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.models import class_name, find_architecture
from stella_jax.models.heads import Activation, Head, Pooling

ACTIVATIONS: dict[str, Activation] = {"Identity": "identity", "Tanh": "tanh"}
OLD_POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "lasttoken")
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
EOS_TOKEN = re.compile(r"[^\s$:]{1,100}")  # templates read this as a token, not as a text or a number
HEAD_FOLDER = re.compile(r"\d+_Dense(_\d+)?")


def read_model_spec(directory: Directory) -> ModelSpec:
    """Reads modules.json and the files that it refers to; a reranker's directory may have no modules.json.

    Raises:
      StellaError: names the file and field that is missing, malformed or not supported.
    """
    modules = _modules(directory) if directory.has("modules.json") else {}
    if not modules and not directory.has("config.json"):
        raise _without_modules(directory)
    transformer = modules.get("Transformer", "")
    prefix = f"{transformer}/" if transformer else ""
    fields = directory.json_object(f"{prefix}config.json")
    architecture = find_architecture(fields)
    config = architecture.config.from_json(fields)
    is_reranker = architecture.scores(class_name(fields))
    settings = _optional(directory, SETTINGS)
    bert = _optional(directory, f"{prefix}sentence_bert_config.json")
    own = (
        reranker_fields(modules, fields, settings if modules else {})
        if is_reranker
        else _embedding_fields(directory, modules, settings, config)
    )
    return ModelSpec(
        transformer=transformer,
        architecture=architecture,
        config=config,
        max_seq_length=_max_seq_length(directory, prefix, bert, config),
        lower=_lower(bert),
        end_of_text=_end_of_text(_optional(directory, f"{prefix}tokenizer_config.json")),
        dropout_rate=_dropout_rate(fields, architecture.dropout_rate),
        **own,
    )


def _embedding_fields(
    directory: Directory, modules: Mapping[str, str], settings: Mapping[str, Any], config: EncoderConfig
) -> dict[str, Any]:
    """The fields of a `ModelSpec` that come from the modules after an embedding model's encoder."""
    if not modules:
        raise _without_modules(directory)
    if "Pooling" not in modules:
        raise _unimplemented(modules)
    default = _head(directory, modules["Dense"], config) if "Dense" in modules else None
    prompts = check_prompts(settings.get("prompts") or {}, f"{SETTINGS}: ")
    return {
        "pooling": _pooling(directory, f"{modules['Pooling']}/config.json", config),
        "heads": _heads(directory, default, config),
        "default_dim": default.dim if default else None,
        "normalize": _normalize(directory, modules),
        "prompts": prompts,
        "default_prompt_name": check_default_prompt(settings.get("default_prompt_name"), prompts, f"{SETTINGS}: "),
        "similarity": check_similarity(settings.get("similarity_fn_name") or "cosine", f"{SETTINGS}: "),
    }


def _modules(directory: Directory) -> dict[str, str]:
    """Class name -> folder, in order, from modules.json; the class name is the last part of "type"."""
    listing = directory.json("modules.json")
    try:
        modules = [(str(m["type"]).rpartition(".")[2], str(m["path"]).strip("/")) for m in listing]
    except (TypeError, KeyError) as error:
        raise StellaError(f"{directory.path('modules.json')}: not a list of modules with type and path.") from error
    kinds = [kind for kind, _ in modules]
    if kinds != [kind for kind in MODULES if kind in kinds] or "Transformer" not in kinds:
        raise _unimplemented(kinds)
    return dict(modules)


def _unimplemented(kinds: Iterable[str]) -> StellaError:
    return StellaError(
        f"modules.json: unsupported modules ({join_words(kinds)}); supported: Transformer, Pooling, at most one Dense, "
        "at most one Normalize, in this order."
    )


def _without_modules(directory: Directory) -> StellaError:
    return StellaError(
        f"{directory.path('modules.json')}: file not found, so the pooling is unknown; download the whole checkpoint, "
        "not the weights alone."
    )


def _pooling(directory: Directory, name: str, config: EncoderConfig) -> Pooling:
    fields = directory.json_object(name)
    if fields.get("include_prompt", True) is not True:
        raise StellaError(
            f"{name}: include_prompt = {short_repr(fields['include_prompt'])} is not supported; supported: true."
        )
    width = fields.get("word_embedding_dimension", fields.get("embedding_dimension"))
    if width != config.hidden_size:
        raise StellaError(
            f"{name}: dimension {short_repr(width)} is not the encoder's hidden_size {config.hidden_size}."
        )
    mode = fields["pooling_mode"] if "pooling_mode" in fields else _old_pooling(fields)
    for known in POOLINGS:
        if mode == known:
            return known
    raise StellaError(f"{name}: pooling {short_repr(mode)} is not supported; supported: {join_words(POOLINGS)}.")


def _old_pooling(fields: dict[str, Any]) -> str:
    """The mode in the older schema, one flag per mode; no flag set is the mean, as in sentence-transformers."""
    flags = [name for name in fields if name.startswith("pooling_mode_")]
    on = [name for name in flags if fields[name]]
    if flags and not on:
        return "mean"
    return OLD_POOLING_FLAGS.get(on[0], on[0]) if len(on) == 1 else " + ".join(on)


def _heads(directory: Directory, default: Head | None, config: EncoderConfig) -> dict[int, Head]:
    """All Dense folders by dimension; the one that modules.json names wins over a leftover of the same size."""
    heads = {default.dim: default} if default else {}
    for folder in sorted(p.name for p in directory.root.iterdir() if HEAD_FOLDER.fullmatch(p.name)):
        head = _head(directory, folder, config)
        known = heads.setdefault(head.dim, head)
        if known not in (default, head):
            raise StellaError(
                f"{known.folder} and {folder}: both are heads of dimension {head.dim}; remove one of them."
            )
    return heads


def _head(directory: Directory, folder: str, config: EncoderConfig) -> Head:
    name = f"{folder}/config.json"
    if not directory.has(name):
        there = sorted(p.name for p in directory.root.iterdir() if HEAD_FOLDER.fullmatch(p.name))
        raise StellaError(f"{directory.path(name)}: file not found; folders of heads: {join_words(there)}.")
    fields = directory.json_object(name)
    activation = str(fields.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise StellaError(
            f"{name}: activation {short_repr(activation)} is not supported; supported: {join_words(ACTIVATIONS)}."
        )
    if fields.get("use_residual"):
        raise StellaError(f"{name}: use_residual is not supported.")
    _check_on_sentence_embedding(name, fields)
    if fields.get("in_features") != config.hidden_size:
        raise StellaError(
            f"{name}: in_features {short_repr(fields.get('in_features'))} is not the encoder's hidden_size "
            f"{config.hidden_size}."
        )
    dim = fields.get("out_features")
    if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= 1_000_000:
        raise StellaError(f"{name}: out_features must be a whole number from 1 to 1000000, not {short_repr(dim)}.")
    return Head(folder, dim, bool(fields.get("bias", True)), ACTIVATIONS[activation])


def _normalize(directory: Directory, modules: Mapping[str, str]) -> bool:
    if "Normalize" not in modules:
        return False
    name = f"{modules['Normalize']}/config.json"  # not in older saves
    _check_on_sentence_embedding(name, _optional(directory, name))
    return True


def _check_on_sentence_embedding(name: str, fields: dict[str, Any]) -> None:
    for key in ("module_input_name", "module_output_name"):
        if fields.get(key, "sentence_embedding") != "sentence_embedding":
            raise StellaError(
                f"{name}: {key} = {short_repr(fields[key])} is not supported; supported: 'sentence_embedding'."
            )


def _lower(bert: dict[str, Any]) -> bool:
    value = bert.get("do_lower_case", False)
    if not isinstance(value, bool):
        raise StellaError(f"sentence_bert_config.json: do_lower_case must be true or false, not {short_repr(value)}.")
    return value


def _end_of_text(fields: dict[str, Any]) -> str | None:
    if fields.get("add_eos_token") is not True:
        return None
    token = fields.get("eos_token")
    token = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(token, str) or not EOS_TOKEN.fullmatch(token):
        raise StellaError(
            f"tokenizer_config.json: eos_token must be a token, not {short_repr(token)}, since add_eos_token is true."
        )
    return token


def _dropout_rate(fields: dict[str, Any], default: float) -> float:
    rate = fields.get("hidden_dropout_prob", default)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise StellaError(
            f"config.json: hidden_dropout_prob must be a number from 0 to below 1, not {short_repr(rate)}."
        )
    return float(rate)


def _optional(directory: Directory, name: str) -> dict[str, Any]:
    return directory.json_object(name) if directory.has(name) else {}


def _max_seq_length(directory: Directory, prefix: str, bert: dict[str, Any], config: EncoderConfig) -> int:
    """The checkpoint's limit, which newer saves state as the tokenizer's; at most the encoder's maximum."""
    name, value = "sentence_bert_config.json: max_seq_length", bert.get("max_seq_length")
    if value is None:
        file = f"{prefix}tokenizer_config.json"
        name, value = f"{file}: model_max_length", _optional(directory, file).get("model_max_length")
    if value is None:
        return config.max_position_embeddings
    limit = config.max_position_embeddings  # transformers writes 1e30 for none
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or min(value, limit) % 1:
        raise StellaError(f"{name} must be a positive whole number, not {short_repr(value)}.")
    return int(min(value, limit))
