"""Reads tokenizer.json within limits: only known parts of known sizes reach the tokenizers library.

The library trusts its file: patterns may backtrack forever, normalizers may multiply a text, and unexpected templates
make it panic.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from stella_jax.errors import StellaError, first_line, join_words, short_repr
from stella_jax.tokenizer.accepted_parts import (
    ADDED_TOKEN,
    ANY,
    DECODERS,
    ID,
    MAX_PARTS,
    MAX_TOKEN_LENGTH,
    MODELS,
    NORMALIZERS,
    PIECES,
    POST_PROCESSORS,
    PRE_TOKENIZERS,
    REPLACED_PATTERNS,
    TOP,
    Fields,
    one_of,
    whole,
)
from stella_jax.tokenizer.charsmap import charsmap_error

# XLM-RoBERTa's file, the largest published one, has 17 MB, 250,002 tokens of 2.6 MB and 500,000 commas.
MAX_BYTES = 32 * 2**20
MAX_COMMAS = 4_000_000
MAX_OBJECTS = 100_000
MAX_VOCABULARY = 1_000_000
MAX_VOCABULARY_BYTES = 8_000_000
MAX_TRIE_NODES = 2_600_000  # of a Unigram vocabulary; the library takes 330 bytes per node
MAX_ADDED = 10_000
MAX_ADDED_CHARACTERS = 250_000

# Each of these can turn one character into 18; a second one could do so again.
UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD", "Precompiled")


class InvalidTokenizer(Exception):
    """What is wrong with a field; `load_tokenizer` adds the name of the file."""


def load_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Loads a tokenizer.json, without its padding and truncation.

    Raises:
      StellaError: names the part or field that is not accepted.
    """
    try:
        content = _read(path)
        with library_errors(path):
            tokenizer = tokenizers.Tokenizer.from_buffer(content)
            tokenizer.no_padding()
            tokenizer.no_truncation()
            _check_normalized(tokenizer)
    except InvalidTokenizer as error:
        raise StellaError(f"{path}: {error}; use the tokenizer that the checkpoint was published with.") from None
    return tokenizer


@contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """Turns the errors of the tokenizers library about this file into a StellaError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, StellaError, InvalidTokenizer):
        raise
    except BaseException as error:  # the library raises Exception, and its panics are BaseException
        raise StellaError(f"{path}: rejected by the tokenizers library ({first_line(error)[:200]}).") from error


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise StellaError(f"{path}: {size} bytes (at most {MAX_BYTES} are allowed); download the tokenizer again.")
    content = path.read_bytes()
    try:
        _check(_parse(content.decode()))
    except (ValueError, RecursionError) as error:
        raise StellaError(f"{path}: not JSON ({error}); download the tokenizer again.") from error
    return content


def _check_normalized(tokenizer: tokenizers.Tokenizer) -> None:
    """Refuses added tokens that are empty after normalization, which the library would find inside characters."""
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.normalized and tokenizer.normalizer and not tokenizer.normalizer.normalize_str(token.content):
            raise InvalidTokenizer(f"the added token {short_repr(token.content)} is empty after normalization")


def _parse(text: str) -> Any:
    """Parses the text, and refuses a repeated key, since the library might use the other value."""
    if text.count(",") > MAX_COMMAS or text.count("{") > MAX_OBJECTS:
        raise InvalidTokenizer(f"more than {MAX_COMMAS} values or {MAX_OBJECTS} objects")
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in fields if names.count(name) > 1)
        raise InvalidTokenizer(f"the key {short_repr(repeated)} appears twice in an object")
    return fields


def _check(fields: Any) -> None:
    _check_fields("", fields, TOP)
    _check_chain("normalizer", fields.get("normalizer"), NORMALIZERS, "normalizers")
    _check_chain("pre_tokenizer", fields.get("pre_tokenizer"), PRE_TOKENIZERS, "pretokenizers")
    _check_chain("post_processor", fields.get("post_processor"), POST_PROCESSORS, "processors")
    _check_chain("decoder", fields.get("decoder"), DECODERS, "decoders")
    _check_added_tokens(fields.get("added_tokens", []))
    model = fields.get("model")
    _check_part("model", model, MODELS)
    _check_vocabulary(model)


def _check_fields(where: str, fields: Any, known: Fields) -> None:
    """Refuses unknown fields and values that are not accepted; missing fields have the library's defaults."""
    if not isinstance(fields, dict):
        raise InvalidTokenizer(f"{where or 'the file'} must be an object, not {short_repr(fields)}")
    for name, value in fields.items():
        if name not in known:
            raise InvalidTokenizer(f"unknown field {_join(where, name)} (known: {join_words(known)})")
        if not known[name].accepts(value):
            raise InvalidTokenizer(f"{_join(where, name)} must be {known[name].expected}, not {short_repr(value)}")


def _join(where: str, name: str) -> str:
    name = name if name.isidentifier() and len(name) < 50 else short_repr(name)
    return f"{where}.{name}" if where else name


def _check_part(where: str, part: Any, known: Mapping[str, Fields]) -> str:
    """Refuses a part of an unknown type; returns the type."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in known:
        raise InvalidTokenizer(f"{where} {short_repr(kind)} is not supported (supported: {join_words(known)})")
    _check_fields(where, part, {"type": ANY, **known[kind]})
    if kind in CHECKS:
        CHECKS[kind](where, part)
    return kind


def _check_chain(where: str, part: Any, known: Mapping[str, Fields], members: str) -> None:
    """Checks a part that may be missing, or a Sequence of several."""
    parts = [] if part is None else [part]
    if isinstance(part, dict) and part.get("type") == "Sequence":
        _check_fields(where, part, {"type": ANY, members: PIECES})
        parts = part.get(members, [])
    kinds = [_check_part(where, each, known) for each in parts]
    for kind in kinds:
        if kind != "Replace" and kinds.count(kind) > 1:
            raise InvalidTokenizer(f"{where} has {kind} twice, and each could multiply the text")
    if len(forms := [kind for kind in kinds if kind in UNICODE_FORMS]) > 1:
        raise InvalidTokenizer(f"{where} has {join_words(forms)}, and each could multiply the text")


def _check_replace(where: str, part: dict[str, Any]) -> None:
    """Refuses a replacement that is longer than its pattern, since a text must not grow."""
    pattern = part.get("pattern", {})
    shortest = len(pattern["String"]) if "String" in pattern else REPLACED_PATTERNS.get(pattern.get("Regex"), 0)
    if len(part.get("content", "")) > shortest:
        raise InvalidTokenizer(f"{where}.content = {short_repr(part['content'])} is longer than what it replaces")


def _check_precompiled(where: str, part: dict[str, Any]) -> None:
    if error := charsmap_error(part.get("precompiled_charsmap", "")):
        raise InvalidTokenizer(f"{where}.precompiled_charsmap is not valid ({error})")


def _check_template(where: str, part: dict[str, Any]) -> None:
    tokens = part.get("special_tokens", {})
    if not isinstance(tokens, dict) or len(tokens) > MAX_PARTS:
        raise InvalidTokenizer(f"{where}.special_tokens must be an object of up to {MAX_PARTS} tokens")
    for name, token in tokens.items():
        _check_fields(f"{where}.special_tokens", token, {"id": one_of(name), "ids": PIECES, "tokens": PIECES})
        if [*map(ID.accepts, token.get("ids", []))] != [True] * len(token.get("tokens", [])) or not token.get("ids"):
            raise InvalidTokenizer(f"{where}.special_tokens: {short_repr(name)} must have as many ids as tokens")
    for template, texts in (("single", ["A"]), ("pair", ["A", "B"])):
        pieces = [_piece(f"{where}.{template}", piece, tokens) for piece in part.get(template, [])]
        if template in part and sorted(filter(None, pieces)) != texts:
            raise InvalidTokenizer(
                f"{where}.{template} must contain {join_words('$' + text for text in texts)} exactly once"
            )


def _piece(where: str, piece: Any, tokens: dict[str, Any]) -> str | None:
    """The text (A or B) that a piece of a template stands for, or None for a special token."""
    kind = next(iter(piece)) if isinstance(piece, dict) and len(piece) == 1 else None
    names = {"Sequence": ("A", "B"), "SpecialToken": tuple(tokens)}
    if kind not in names:
        raise InvalidTokenizer(f"{where} has a piece that is neither Sequence nor SpecialToken ({short_repr(piece)})")
    _check_fields(where, piece[kind], {"id": one_of(*names[kind]), "type_id": whole(0, 1)})
    return piece[kind].get("id") if kind == "Sequence" else None


CHECKS = {"Replace": _check_replace, "Precompiled": _check_precompiled, "TemplateProcessing": _check_template}


def _check_added_tokens(tokens: list[Any]) -> None:
    if len(tokens) > MAX_ADDED:
        raise InvalidTokenizer(f"added_tokens has {len(tokens)} tokens (at most {MAX_ADDED} are allowed)")
    for token in tokens:
        _check_fields("added_tokens", token, ADDED_TOKEN)
    if sum(len(token.get("content", "")) for token in tokens) > MAX_ADDED_CHARACTERS:
        raise InvalidTokenizer(f"added_tokens has more than {MAX_ADDED_CHARACTERS} characters")


def _check_vocabulary(model: dict[str, Any]) -> None:
    vocabulary: Any = model.get("vocab")
    if model["type"] == "Unigram":
        tokens = _scored_tokens(vocabulary)
        if model.get("unk_id") is None or model["unk_id"] >= len(tokens):
            raise InvalidTokenizer(
                f"model.unk_id must be an index of model.vocab, not {short_repr(model.get('unk_id'))}"
            )
    else:
        tokens = _numbered_tokens(vocabulary)
        if model.get("unk_token") is not None and model["unk_token"] not in vocabulary:
            raise InvalidTokenizer(f"model.unk_token {short_repr(model['unk_token'])} is not in model.vocab")
        _check_merges(model.get("merges", []), vocabulary)
    if max(map(len, tokens)) > MAX_TOKEN_LENGTH:
        raise InvalidTokenizer(f"model.vocab has a token of more than {MAX_TOKEN_LENGTH} characters")
    if (size := len("".join(tokens).encode())) > MAX_VOCABULARY_BYTES:
        raise InvalidTokenizer(f"model.vocab has {size} bytes (at most {MAX_VOCABULARY_BYTES} are allowed)")
    if model["type"] == "Unigram" and size > MAX_TRIE_NODES and _trie_nodes(tokens) > MAX_TRIE_NODES:
        raise InvalidTokenizer(f"model.vocab has more than {MAX_TRIE_NODES} different prefixes of tokens")


def _trie_nodes(tokens: Iterable[str]) -> int:
    """The number of different prefixes of tokens, in bytes."""
    words = sorted(token.encode() for token in tokens)
    nodes = len(words[0])
    for before, word in itertools.pairwise(words):
        nodes += len(word) - len(os.path.commonprefix((before, word)))  # noqa: RUF071 - bytes, not paths
    return nodes


def _numbered_tokens(vocabulary: Any) -> Iterable[str]:
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= MAX_VOCABULARY:
        raise InvalidTokenizer(f"model.vocab must be an object of 1 to {MAX_VOCABULARY} tokens")
    if {*map(type, vocabulary.values())} != {int} or not 0 <= min(vocabulary.values()) <= max(
        vocabulary.values()
    ) < 2**31:
        raise InvalidTokenizer("model.vocab must give each token a whole number")
    return vocabulary.keys()


def _scored_tokens(vocabulary: Any) -> list[str]:
    if not isinstance(vocabulary, list) or not 0 < len(vocabulary) <= MAX_VOCABULARY:
        raise InvalidTokenizer(f"model.vocab must be a list of 1 to {MAX_VOCABULARY} tokens")
    for entry in vocabulary:
        if not isinstance(entry, list) or [*map(type, entry)] not in ([str, float], [str, int]):
            raise InvalidTokenizer(f"model.vocab holds {short_repr(entry)}, not a token and a score")
        if not entry[0] or not abs(entry[1]) <= 1e6:
            raise InvalidTokenizer(f"model.vocab: {short_repr(entry)} has no token, or a score beyond a million")
    return [token for token, _ in vocabulary]


def _check_merges(merges: Any, vocabulary: Any) -> None:
    if not isinstance(merges, list):
        raise InvalidTokenizer("model.merges must be a list")
    for merge in merges:
        pair = merge if isinstance(merge, list) else str(merge).split(" ")
        if len(pair) != 2 or {*map(type, pair)} != {str}:
            raise InvalidTokenizer(f"model.merges holds {short_repr(merge)}, not two tokens")
        if not vocabulary.keys() >= {*pair, pair[0] + pair[1]}:
            raise InvalidTokenizer(f"model.merges holds {short_repr(merge)}, with a token that is not in model.vocab")
