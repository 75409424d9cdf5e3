"""Tokenizes pairs of a query and a text, with the pair template of a checkpoint's tokenizer.json."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from sys import maxsize
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from stella_jax.errors import StellaError
from stella_jax.tokenizer.tokenizer import MARGIN_WORDS, MAX_READ, Tokenizer, Tokens, batches, cut_text

Pair = tuple[str, str]


class PairTokenizer(Tokenizer):
    """A tokenizer of pairs; arguments as for `Tokenizer`, where `max_length` is for both texts together.

    Texts are tokenized one by one, and truncated and joined here: when the library truncates a pair, it builds all
    combinations of the parts that it cuts off, which takes gigabytes for long texts.
    """

    is_for_pairs = True

    def __init__(self, path: Path, **options: Any):
        super().__init__(path, **options)
        self._template = _template(self._tokenizer, path)

    def encode_pairs(self, pairs: Sequence[Pair]) -> list[Tokens]:
        """Tokens of each pair, truncated like transformers' `longest_first` (see `cut_lengths`).

        Long texts are read only until their tokens are final, within the limits of `Tokenizer.encode`.
        """
        sizes = (sum(min(len(text), self._first_read) for text in pair) for pair in pairs)
        return [tokens for batch in batches(pairs, sizes) for tokens in self._encode_pairs(batch)]

    def _encode_pairs(self, pairs: Sequence[Pair]) -> Iterator[Tokens]:
        is_short = [max(map(len, pair)) <= self._first_read for pair in pairs]
        texts = [self._prepare("", text) for pair, fits in zip(pairs, is_short, strict=True) if fits for text in pair]
        whole = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for pair, fits in zip(pairs, is_short, strict=True):
            if fits:
                yield self._joined(*(_Start(encoding, len(encoding)) for encoding in (next(whole), next(whole))))
            else:
                yield self._long_pair(pair)

    def _long_pair(self, pair: Pair) -> Tokens:
        """Tokens of a pair that may need more than the first read."""
        read = self._first_read
        first, second = (self._start(text, read) for text in pair)
        while len({cut_lengths(*counts, self._room) for counts in product(first.counts, second.counts)}) > 1:
            read *= 4
            first, second = (self._start(text, read) for text in pair)
        return self._joined(first, second)

    def _start(self, text: str, read: int) -> "_Start":
        """Tokens of the first `read` characters of a text."""
        longest_read = max(MAX_READ, self._first_read)
        read = min(read, longest_read)
        is_all = len(text) <= read or read == longest_read
        part = text[:read] if is_all else cut_text(text, read)
        encoding = self._tokenizer.encode(self._prepare("", part), add_special_tokens=False)
        if is_all:
            return _Start(encoding, len(encoding), is_whole=len(text) <= read)
        words = np.array(encoding.word_ids, int)
        return _Start(encoding, int((words[-1:] - words >= MARGIN_WORDS).sum()), is_all=False, is_whole=False)

    def _joined(self, first: "_Start", second: "_Start") -> Tokens:
        cuts = cut_lengths(first.settled, second.settled, self._room)
        before, between, after = self._template
        ids = [start.encoding.ids[:cut] for start, cut in zip((first, second), cuts, strict=True)]
        is_cut = sum(cuts) < first.settled + second.settled or not (first.is_whole and second.is_whole)
        return Tokens([*before, *ids[0], *between, *ids[1], *after], is_cut)

    @property
    def _room(self) -> int:
        return self._max_length - self._special_tokens


class _Start(NamedTuple):
    """Tokens of the start of a text.

    Attributes:
      settled: how many of them do not depend on the rest of the text.
      is_all: whether no more of the text will be read.
      is_whole: whether the whole text was read.
    """

    encoding: tokenizers.Encoding
    settled: int
    is_all: bool = True
    is_whole: bool = True

    @property
    def counts(self) -> tuple[int, ...]:
        """Minimum and maximum number of tokens that the text can have."""
        return (self.settled,) if self.is_all else (self.settled, maxsize)


def cut_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts with `first` and `second` tokens are kept if there is room for `room`.

    The longer text (of equal ones the second) is cut until both are equally long, then both are. If a text gets more
    tokens, it keeps no fewer, and the other one keeps no more.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def _template(tokenizer: tokenizers.Tokenizer, path: Path) -> tuple[list[int], list[int], list[int]]:
    """The special tokens before, between and after the texts of a pair."""
    probe = tokenizer.encode("a", "a")
    parts: list[list[int]] = [[]]
    for token, text in zip(probe.ids, probe.sequence_ids, strict=True):
        if text is None:
            parts[-1].append(token)
        elif text == len(parts) - 1:
            parts.append([])
    if len(parts) != 3:
        raise StellaError(f"{path}: the template does not join the two texts of a pair in their order.")
    return parts[0], parts[1], parts[2]
