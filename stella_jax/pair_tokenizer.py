"""A query and a text -> token ids, by the pair template of a checkpoint's tokenizer.json."""

from collections.abc import Iterator, Sequence
from itertools import product
from sys import maxsize
from typing import NamedTuple

import numpy as np
import tokenizers

from stella_jax.tokenizer import FARTHEST, MARGIN_WORDS, Tokenizer, Tokens, batches, cut_text

Pair = tuple[str, str]


class PairTokenizer(Tokenizer):
    """A tokenizer of pairs; the arguments are those of `Tokenizer`, `max_length` is of both texts together."""

    is_for_pairs = True

    def encode_pairs(self, pairs: Sequence[Pair]) -> list[Tokens]:
        """Tokens of each pair, cut as transformers' `longest_first` cuts (see `cut_lengths`).

        Of long texts only as much is read as settles the tokens, within the bounds of `Tokenizer.encode`.
        """
        sizes = (sum(min(len(text), self._first_read) for text in pair) for pair in pairs)
        return [tokens for batch in batches(pairs, sizes) for tokens in self._encode_pairs(batch)]

    def _encode_pairs(self, pairs: Sequence[Pair]) -> Iterator[Tokens]:
        is_short = [max(map(len, pair)) <= self._first_read for pair in pairs]
        short = [pair for pair, fits in zip(pairs, is_short, strict=True) if fits]
        whole = iter(
            self._tokenizer.encode_batch_fast([(self._prepare("", a), self._prepare("", b)) for a, b in short])
        )
        for pair, fits in zip(pairs, is_short, strict=True):
            yield self._tokens(next(whole)) if fits else self._long_pair(pair)

    def _long_pair(self, pair: Pair) -> Tokens:
        room, read = self._max_length - self._special_tokens, self._first_read
        starts = [self._start(text, read) for text in pair]
        while len({cut_lengths(a, b, room) for a, b in product(*(start.counts for start in starts))}) > 1:
            read *= 4
            starts = [self._start(text, read) for text in pair]
        cuts = cut_lengths(*(start.settled for start in starts), room)
        for start, cut in zip(starts, cuts, strict=True):
            start.encoding.truncate(cut)
        is_cut = any(cut < start.settled or not start.is_whole for start, cut in zip(starts, cuts, strict=True))
        return Tokens(self._tokenizer.post_process(*(start.encoding for start in starts)).ids, is_cut)

    def _start(self, text: str, read: int) -> "_Start":
        """The tokens of so many characters of a text."""
        farthest = max(FARTHEST, self._first_read)
        read = min(read, farthest)
        is_all = len(text) <= read or read == farthest
        part = text[:read] if is_all else cut_text(text, read)
        encoding = self._tokenizer.encode(self._prepare("", part), add_special_tokens=False)
        words = np.array([word for piece in (encoding, *encoding.overflowing) for word in piece.word_ids], int)
        settled = len(words) if is_all else int((words[-1:] - words >= MARGIN_WORDS).sum())
        return _Start(encoding, settled, is_all, len(text) <= len(part))


class _Start(NamedTuple):
    """Tokens of the beginning of a text.

    Attributes:
      settled: how many are the same whatever follows.
      is_all: whether no more is read of it.
      is_whole: whether it is all of the text.
    """

    encoding: tokenizers.Encoding
    settled: int
    is_all: bool
    is_whole: bool

    @property
    def counts(self) -> tuple[int, ...]:
        """The least and the most tokens that the text may have."""
        return (self.settled,) if self.is_all else (self.settled, maxsize)


def cut_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens are kept of two texts with so many where there is room for `room`.

    The longer one (of equals the second) gives way until both are equally long, then both do. With more tokens in one
    of the texts it keeps no fewer, and the other no more.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
