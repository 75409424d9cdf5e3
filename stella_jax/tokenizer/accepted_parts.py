"""The accepted parts of a tokenizer.json, by type, and the accepted values of their fields."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from stella_jax.errors import join_words

MAX_TOKEN_LENGTH = 512
MAX_PARTS = 16

# The split pattern of Qwen2's tokenizer, and patterns that collapse spaces; others might run forever.
SPLIT_PATTERNS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
REPLACED_PATTERNS = {" {2,}": 2, r"\A +| +\z": 1}  # and the fewest characters that each matches


class Field(NamedTuple):
    """The accepted values of a field: as a test, and in words."""

    accepts: Callable[[Any], bool]
    expected: str


Fields = Mapping[str, Field]


def one_of(*values: str) -> Field:
    return Field(lambda value: value in values, join_words(map(repr, values), "or"))


def text(longest: int, shortest: int = 0) -> Field:
    return Field(
        lambda value: isinstance(value, str) and shortest <= len(value) <= longest,
        f"a text of {shortest} to {longest} characters",
    )


def whole(smallest: int, largest: int) -> Field:
    return Field(
        lambda value: type(value) is int and smallest <= value <= largest, f"a whole number, {smallest} to {largest}"
    )


def or_null(field: Field) -> Field:
    return Field(lambda value: value is None or field.accepts(value), f"null or {field.expected}")


def pattern(known: Iterable[str]) -> Field:
    def accepts(value: Any) -> bool:
        if not isinstance(value, dict) or len(value) != 1:
            return False
        return value.get("Regex") in tuple(known) or SHORT.accepts(value.get("String"))

    return Field(accepts, "a plain string, or one of the regular expressions of supported tokenizers")


ANY = Field(lambda value: True, "anything")
FLAG = Field(lambda value: isinstance(value, bool), "true or false")
SHORT = text(16, 1)
NO_AFFIX = Field(lambda value: value in (None, ""), "null")  # merges shorter than a prefix make the library panic
PIECES = Field(lambda value: isinstance(value, list) and len(value) <= MAX_PARTS, f"a list of up to {MAX_PARTS} pieces")
ID = whole(0, 2**31 - 1)
LARGE = Field(lambda value: isinstance(value, dict | list), "an object or a list")
METASPACE = {
    "replacement": text(1, 1),
    "prepend_scheme": one_of("always", "first", "never"),
    "split": FLAG,
    "add_prefix_space": FLAG,
    "str_rep": text(1, 1),
}
BYTE_LEVEL = {"add_prefix_space": FLAG, "trim_offsets": FLAG, "use_regex": FLAG}

NORMALIZERS: Mapping[str, Fields] = {
    "BertNormalizer": {
        "clean_text": FLAG,
        "handle_chinese_chars": FLAG,
        "strip_accents": or_null(FLAG),
        "lowercase": FLAG,
    },
    "Precompiled": {"precompiled_charsmap": Field(lambda value: isinstance(value, str), "a text")},
    "NFC": {},
    "NFD": {},
    "NFKC": {},
    "NFKD": {},
    "Nmt": {},
    "Lowercase": {},
    "StripAccents": {},
    "Strip": {"strip_left": FLAG, "strip_right": FLAG},
    "Prepend": {"prepend": SHORT},
    "Replace": {"pattern": pattern(REPLACED_PATTERNS), "content": text(16)},
}
PRE_TOKENIZERS: Mapping[str, Fields] = {
    "BertPreTokenizer": {},
    "WhitespaceSplit": {},
    "Metaspace": METASPACE,
    "ByteLevel": BYTE_LEVEL,
    "Split": {
        "pattern": pattern(SPLIT_PATTERNS),
        "behavior": one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"),
        "invert": FLAG,
    },
}
POST_PROCESSORS: Mapping[str, Fields] = {
    "TemplateProcessing": {"single": PIECES, "pair": PIECES, "special_tokens": LARGE},
    "ByteLevel": BYTE_LEVEL,
}
DECODERS: Mapping[str, Fields] = {
    "WordPiece": {"prefix": text(16), "cleanup": FLAG},
    "Metaspace": METASPACE,
    "ByteLevel": BYTE_LEVEL,
}
MODELS: Mapping[str, Fields] = {
    "WordPiece": {
        "unk_token": text(MAX_TOKEN_LENGTH),
        "continuing_subword_prefix": text(16),
        "max_input_chars_per_word": whole(1, 200),  # time grows quadratically
        "vocab": LARGE,
    },
    "BPE": {
        "dropout": Field(lambda value: value is None or value == 0, "null or 0"),
        "unk_token": or_null(text(MAX_TOKEN_LENGTH)),
        "continuing_subword_prefix": NO_AFFIX,
        "end_of_word_suffix": NO_AFFIX,
        "fuse_unk": FLAG,
        "byte_fallback": FLAG,
        "ignore_merges": FLAG,
        "vocab": LARGE,
        "merges": LARGE,
    },
    "Unigram": {"unk_id": or_null(ID), "byte_fallback": FLAG, "vocab": LARGE},
}
TOP: Fields = {
    "version": ANY,
    "truncation": or_null(LARGE),  # both are ignored
    "padding": or_null(LARGE),
    "added_tokens": Field(lambda value: isinstance(value, list), "a list"),
    **dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "model"), ANY),
}
ADDED_TOKEN: Fields = {
    "id": ID,
    "content": text(MAX_TOKEN_LENGTH, 1),
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), FLAG),
}
