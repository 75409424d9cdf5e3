"""Pairs to ids: truncated like in transformers, with long texts read only as far as needed."""

import time
from pathlib import Path

import pytest
import tokenizers
from corruptions import tokenizer as changed
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GOLDENS

from stella_jax.tokenizer import tokenizer as module
from stella_jax.tokenizer.pair_tokenizer import PairTokenizer, cut_lengths
from stella_jax.tokenizer.tokenizer import Tokens

GOLDEN = GOLDENS / "gte-reranker"
UNIGRAM, WORDPIECE = GOLDEN / "tokenizer.json", GOLDENS / "stella/tokenizer.json"
BOTH = pytest.mark.parametrize("path", [UNIGRAM, WORDPIECE], ids=["unigram", "wordpiece"])
texts = st.text(st.characters(exclude_categories=["Cs"]))
lengths = st.integers(0, 40)


def by_hand(path: Path, pair: tuple[str, str], max_length: int) -> Tokens:
    """Tokens of the whole texts, truncated by the rule; the library needs too much memory for long texts."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    whole = tokenizer.encode(*pair)
    sequences = whole.sequence_ids
    first, second = (sequences.count(number) for number in (0, 1))
    left = dict(enumerate(cut_lengths(first, second, max_length - sequences.count(None))))
    ids = []
    for token, number in zip(whole.ids, sequences, strict=True):
        if number is None or left[number]:
            ids.append(token)
            left |= {} if number is None else {number: left[number] - 1}
    return Tokens(ids, len(whole.ids) > max_length)


def all_at_once(path: Path, pair: tuple[str, str], max_length: int) -> Tokens:
    """The library's tokens of the whole pair."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    whole = len(tokenizer.encode(*pair).ids)
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return Tokens(tokenizer.encode(*pair).ids, whole > max_length)


@BOTH
@given(pair=st.tuples(texts, texts), max_length=st.integers(6, 17))
def test_pairs_are_truncated_like_in_the_library(path, pair, max_length):
    tokenizer = PairTokenizer(path, max_length=max_length)
    assert tokenizer.encode_pairs([pair]) == [all_at_once(path, pair, max_length)]


words = st.integers(0, 30).map(lambda count: " ".join(["tea"] * count))


@BOTH
@given(pair=st.tuples(words, words), max_length=st.integers(6, 40))
def test_words_are_truncated_like_in_the_library(path, pair, max_length):
    tokenizer = PairTokenizer(path, max_length=max_length)
    assert tokenizer.encode_pairs([pair, pair]) == [all_at_once(path, pair, max_length)] * 2


@given(first=lengths, second=lengths, room=st.integers(2, 30), more=st.integers(1, 9))
def test_longer_text_never_keeps_fewer_tokens(first, second, room, more):
    """Reading only the start of a text relies on this."""
    kept, other = cut_lengths(first, second, room)
    assert kept + other == min(first + second, room)
    more_kept, less_of_other = cut_lengths(first + more, second, room)
    assert more_kept >= kept and less_of_other <= other


PIECES = ["the ", "tea", "x", " ", "\n", ".", "5", "</s>", "\u200b", "e\u0301", "\u0301", "\ufdfa", "\u4eac"]
runs = st.lists(st.tuples(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), st.integers(1, 300)), max_size=4)
long_texts = runs.map(lambda runs: "".join("".join(unit) * count for unit, count in runs))


@BOTH
@settings(max_examples=40)
@given(pair=st.tuples(long_texts, long_texts), max_length=st.integers(6, 13))
def test_long_pairs_have_the_tokens_of_the_whole_texts(path, pair, max_length):
    tokenizer = PairTokenizer(path, max_length=max_length)
    expected = [by_hand(path, each, max_length) for each in (pair, ("tea", "x"), pair[::-1])]
    assert tokenizer.encode_pairs([pair, ("tea", "x"), pair[::-1]]) == expected


@pytest.mark.parametrize("max_length", [64, 65])
@pytest.mark.parametrize(
    "counts", [(5000, 5000), (5001, 5000), (5000, 5001), (3, 9000), (9000, 3), (31, 9000), (0, 9000)]
)
def test_longer_of_two_long_texts_keeps_one_more_token(max_length, counts):
    """Odd room goes to the longer text, even if the difference shows late."""
    pair = tuple("tea " * count for count in counts)
    [tokens] = PairTokenizer(UNIGRAM, max_length=max_length).encode_pairs([pair])
    assert tokens == by_hand(UNIGRAM, pair, max_length)


def test_no_more_is_read_than_needed():
    tokenizer = PairTokenizer(UNIGRAM, max_length=513)
    began = time.monotonic()
    huge = "green tea, " * 5_000_000
    for pair in (("tea", huge), (huge, "tea")):
        [tokens] = tokenizer.encode_pairs([pair])
        assert (len(tokens.ids), tokens.truncated) == (513, True)
    assert time.monotonic() - began < 2


def test_text_beyond_the_limit_is_cut(monkeypatch):
    monkeypatch.setattr(module, "MAX_READ", 10_000)
    monkeypatch.setattr("stella_jax.tokenizer.pair_tokenizer.MAX_READ", 10_000)
    run = "x" * 10_000
    tokenizer = PairTokenizer(UNIGRAM, max_length=8)
    within, beyond = tokenizer.encode_pairs([("tea", run), ("tea", run + " green tea")])
    assert (within.ids, beyond.truncated) == (beyond.ids, True)


def test_few_characters_are_tokenized_at_once(monkeypatch):
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 20)
    pairs = [("green tea", ""), ("", ""), ("x" * 50, "tea"), ("tea", "y" * 1000)]
    assert PairTokenizer(UNIGRAM, max_length=16).encode_pairs(pairs) == [by_hand(UNIGRAM, pair, 16) for pair in pairs]


def test_neighbors_change_nothing():
    tokenizer = PairTokenizer(UNIGRAM, max_length=16)
    pairs = [("a", "Green tea"), ("", ""), ("北京 🍵", ""), ("", "word " * 500)]
    assert tokenizer.encode_pairs(pairs) == [tokenizer.encode_pairs([pair])[0] for pair in pairs]
    assert tokenizer.encode_pairs([]) == []


def test_too_small_max_length(refused):
    tokenizer = PairTokenizer(UNIGRAM, max_length=6)
    with refused("max_seq_length 5"):
        tokenizer.max_length = 5


def test_template_without_special_tokens_for_pairs(checkpoint_copy, refused):
    path = checkpoint_copy("gte-reranker")
    sequences = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
    changed(lambda fields: fields["post_processor"].update(pair=sequences))(path)
    with refused("tokenizer.json"):
        PairTokenizer(path / "tokenizer.json", max_length=8)


@pytest.mark.torch
@given(pair=st.tuples(texts | words, texts | words), max_length=st.integers(6, 40))
def test_equals_transformers(transformers_tokenizer, pair, max_length):
    """In lists, since in a single pair it ignores an empty second text."""
    first, second = pair
    expected = transformers_tokenizer([first], [second], truncation="longest_first", max_length=max_length)
    assert PairTokenizer(UNIGRAM, max_length=max_length).encode_pairs([pair])[0].ids == expected["input_ids"][0]


@pytest.fixture(scope="module")
def transformers_tokenizer():
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(UNIGRAM))
