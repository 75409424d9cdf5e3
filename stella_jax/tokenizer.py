"""Text -> token ids, with the checkpoint's own tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers

from stella_jax.errors import StellaError

# A character so rare that no vocabulary has it.
UNKNOWN = "\U0001fa00"


class Tokens(NamedTuple):
    """Token ids of one text, special tokens included, and whether its end was cut off."""

    ids: Sequence[int]
    truncated: bool


class Tokenizer:
    """A tokenizer.json, cut at `max_length` tokens.

    Padding and truncation baked into the file are switched off: they are settings of whoever saved it.

    Args:
      path: a tokenizer.json.
      max_length: most tokens of a text, special tokens included.
      lower: lowercase texts first (sentence_bert_config.json's `do_lower_case`).
    """

    def __init__(self, path: Path, *, max_length: int, lower: bool = False):
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_padding()
            probe = self._tokenizer.encode(UNKNOWN)  # some faults show only here
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            raise StellaError(
                f"{path} is not a tokenizer.json that the tokenizers library can use: {error}."
            ) from error
        if not self._tokenizer.num_special_tokens_to_add(is_pair=False):
            raise StellaError(f"{path} adds no special tokens, so an empty text would have no tokens; the family's do.")
        self._largest_special = max(probe.ids, default=-1)
        self._lower = lower
        self.max_length = max_length

    @property
    def max_length(self) -> int:
        return self._max_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        shortest = self._tokenizer.num_special_tokens_to_add(is_pair=False) + 1
        if value < shortest:
            raise StellaError(f"max_seq_length {value} leaves no room for a token; the least is {shortest}.")
        self._max_length = value
        self._tokenizer.enable_truncation(value)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id it can give."""
        # The special tokens of a template need not stand in the vocabulary.
        return max([*self._tokenizer.get_vocab(with_added_tokens=True).values(), self._largest_special]) + 1

    def encode(self, texts: Sequence[str], prompt: str = "") -> list[Tokens]:
        """Tokens of each text after the prompt."""
        whole = [prompt + text for text in texts]
        if self._lower:
            whole = [text.lower() for text in whole]
        return [self._tokens(encoding) for encoding in self._tokenizer.encode_batch_fast(whole)]

    def _tokens(self, encoding: tokenizers.Encoding) -> Tokens:
        ids = encoding.ids
        # The pieces cut off are copied when asked for: ask only where the text fills its length.
        return Tokens(ids, len(ids) == self._max_length and bool(encoding.overflowing))


def check_text(text: object, where: str) -> str:
    """The text itself, if it is one.

    Raises:
      StellaError: says what it is instead, and `where`.
    """
    if not isinstance(text, str):
        raise StellaError(f"{where} is {describe(text)}, not a text; pass str.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StellaError(
            f"{where} holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), which is no "
            "Unicode text; decode the source with errors='replace'."
        ) from None
    return text


def describe(value: object) -> str:
    """What a value is, in words short enough for an error."""
    if value is None:
        return "None"
    return f"{type(value).__name__} {value!r:.40}"
