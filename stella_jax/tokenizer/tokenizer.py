"""Turns text into token ids, with the checkpoint's own tokenizer.json."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import tokenizers

from stella_jax.errors import StellaError, lone_surrogate, short_repr
from stella_jax.tokenizer.json_file import library_errors, load_tokenizer

# A character so rare that no vocabulary has it.
UNKNOWN = "\U0001fa00"

# Limits in characters: a tokenizer takes 0.1 to 0.4 kB for each (1.8 kB for the few that NFKC expands to twenty).
BATCH_CHARACTERS = 2**20
MAX_READ = 2**20
# Characters per token that are read first of a long text, whose words have 4 to 10 characters.
FIRST_READ = 32
# Words between the last kept token and the cut: more than a pre-tokenizer may look ahead.
MARGIN_WORDS = 16
# Characters that no normalizer joins to those before them, or lets look beyond them, as a final sigma does.
_BOUNDARY = re.compile("[\t\n 0-9]")

T = TypeVar("T")


class Tokens(NamedTuple):
    """Token ids of one text, including special tokens, and whether the text was truncated."""

    ids: Sequence[int]
    truncated: bool


class Tokenizer:
    """A tokenizer.json that truncates texts to `max_length` tokens.

    Padding and truncation in the file itself are ignored.

    Args:
      path: a tokenizer.json.
      max_length: maximum number of tokens of a text, including special tokens.
      lower: whether to lowercase texts first (sentence_bert_config.json's `do_lower_case`).
      end_of_text: token to end each text with if the file adds no special tokens itself.
    """

    is_for_pairs = False

    def __init__(self, path: Path, *, max_length: int, lower: bool = False, end_of_text: str | None = None):
        self._tokenizer = load_tokenizer(path)
        with library_errors(path):
            if end_of_text is not None:
                append_end_of_text(self._tokenizer, end_of_text)
            # Some faults show only when a text is encoded.
            probe = self._tokenizer.encode(UNKNOWN, UNKNOWN if self.is_for_pairs else None)
        if not self._special_tokens:
            raise StellaError(
                f"{path}: adds no special tokens, so an empty text would have no tokens; use the tokenizer that the "
                "checkpoint was published with."
            )
        self._largest_special = max(probe.ids, default=-1)
        self._lower = lower
        self.max_length = max_length

    @property
    def max_length(self) -> int:
        return self._max_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        shortest = self._special_tokens + 1 + self.is_for_pairs
        if value < shortest:
            raise StellaError(f"max_seq_length {value}: too small for any text; the minimum is {shortest}.")
        self._max_length = value
        if self.is_for_pairs:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(value)

    @property
    def vocab_size(self) -> int:
        """One more than the largest possible token id."""
        # The special tokens of a template may be missing from the vocabulary.
        return max([*self._tokenizer.get_vocab(with_added_tokens=True).values(), self._largest_special]) + 1

    @property
    def _special_tokens(self) -> int:
        return self._tokenizer.num_special_tokens_to_add(is_pair=self.is_for_pairs)

    def encode(self, texts: Sequence[str], prompt: str = "") -> list[Tokens]:
        """Tokens of each text with the prompt before it.

        A long text is read only until its first `max_length` tokens are final; they are the same as for the whole text.
        If the first million characters (128 per token, if that is more) are not enough, as in a text of more letters
        without a space, the text is cut there, and is `truncated`.

        Raises:
          StellaError: see `check_prompt`.
        """
        self.check_prompt(prompt)
        return [tokens for batch in self._batches(texts) for tokens in self._encode(batch, prompt)]

    def check_prompt(self, prompt: str) -> None:
        """Raises StellaError if a prompt leaves no room for a text, so that all texts would get the same tokens."""
        if not prompt:
            return
        # Without the space at its end, which may become part of the text's first token.
        encoding = self._tokenizer.encode(self._prepare(prompt.rstrip(), ""))
        if len(encoding.ids) == self._max_length:
            beyond = sum(len(part.ids) - self._special_tokens for part in encoding.overflowing)
            raise StellaError(
                f"prompt {short_repr(prompt)}: its {self._max_length + beyond} tokens leave no room for a text within "
                f"the maximum length of {self._max_length}; raise it (max_seq_length, --max-length of a command, "
                "data.max_length of a recipe), or use another prompt."
            )

    def _batches(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        return batches(texts, (min(len(text), self._first_read) for text in texts))

    def _encode(self, texts: Sequence[str], prompt: str) -> Iterator[Tokens]:
        first = self._first_read
        short = [self._prepare(prompt, text) for text in texts if len(text) <= first]
        long = [self._prepare(prompt, cut_text(text, first)) for text in texts if len(text) > first]
        whole, starts = iter(self._tokenizer.encode_batch_fast(short)), iter(self._tokenizer.encode_batch(long))
        for text in texts:
            if len(text) <= first:
                yield self._tokens(next(whole))
            elif _is_settled(encoding := next(starts)):
                yield self._tokens(encoding)
            else:
                yield self._read_on(text, prompt)

    def _read_on(self, text: str, prompt: str) -> Tokens:
        """Tokens of a text that needs more than the first read."""
        read = 4 * self._first_read
        longest_read = max(MAX_READ, read)
        while read < min(len(text), longest_read):
            encoding = self._tokenizer.encode(self._prepare(prompt, cut_text(text, read)))
            if _is_settled(encoding):
                return self._tokens(encoding)
            read *= 4
        [encoding] = self._tokenizer.encode_batch_fast([self._prepare(prompt, text[:longest_read])])
        tokens = self._tokens(encoding)
        return tokens._replace(truncated=True) if len(text) > longest_read else tokens

    @property
    def _first_read(self) -> int:
        return FIRST_READ * self._max_length

    def _prepare(self, prompt: str, text: str) -> str:
        return (prompt + text).lower() if self._lower else prompt + text

    def _tokens(self, encoding: tokenizers.Encoding) -> Tokens:
        ids = encoding.ids
        # `overflowing` copies the parts that were cut off, so it is read only if the text fills its length.
        return Tokens(ids, len(ids) == self._max_length and bool(encoding.overflowing))


def batches(items: Sequence[T], sizes: Iterable[int]) -> Iterator[Sequence[T]]:
    """Groups items, whose sizes are given in characters, into batches of at most BATCH_CHARACTERS."""
    first, total = 0, 0
    for i, size in enumerate(sizes):
        if total and total + size > BATCH_CHARACTERS:
            yield items[first:i]
            first, total = i, 0
        total += size
    yield items[first:]


def append_end_of_text(tokenizer: tokenizers.Tokenizer, token: str) -> bool:
    """Makes a tokenizer end each text with a token, unless it adds special tokens already or does not know the token.

    Returns:
      Whether the tokenizer was changed.
    """
    token_id = tokenizer.token_to_id(token)
    if token_id is None or tokenizer.num_special_tokens_to_add(is_pair=False):
        return False
    template = tokenizers.processors.TemplateProcessing(
        single=f"$A {token}", pair=f"$A {token} $B:1 {token}:1", special_tokens=[(token, token_id)]
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = tokenizers.processors.Sequence([before, template]) if before else template
    return True


def cut_text(text: str, read: int) -> str:
    """At most `read` characters, cut before one that no normalizer joins to them; "" if there is none."""
    found = _BOUNDARY.search(text[read : read // 2 : -1])
    return text[: read - found.start()] if found else ""


def _is_settled(encoding: tokenizers.Encoding) -> bool:
    """Whether the tokens do not depend on the text after the part that was read.

    Normalizers do not look across the cut of `cut_text`, and models see one word at a time, so only words near the cut
    can change.
    """
    beyond = encoding.overflowing
    return bool(beyond) and _last_word(beyond[-1]) - _last_word(encoding) >= MARGIN_WORDS


def _last_word(encoding: tokenizers.Encoding) -> int:
    return max(word for word in encoding.word_ids if word is not None)


def check_text(text: object, where: str) -> str:
    """Returns the text if it is a valid str.

    Raises:
      StellaError: it is not; the error starts with `where`.
    """
    if not isinstance(text, str):
        raise StellaError(f"{where}: expected a str, got {describe(text)}.")
    if found := lone_surrogate(text):
        raise StellaError(f"{where}: {found}, not valid Unicode; decode the source with errors='replace'.")
    return text


def describe(value: object) -> str:
    """The type and the value, short enough for an error."""
    if value is None:
        return "None"
    return f"{type(value).__name__} {short_repr(value):.40}"
