"""Text to ids: what is cut and marked, what is a text at all, and settings of the file that must not act."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from damage import tokenizer as changed
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDENS

from stella_jax import StellaError
from stella_jax.tokenizer import Tokenizer, check_text

WORDPIECE, UNIGRAM = GOLDENS / "stella/tokenizer.json", GOLDENS / "arctic-m-v2/tokenizer.json"
BOTH = pytest.mark.parametrize("path", [WORDPIECE, UNIGRAM], ids=["wordpiece", "unigram"])
LONG = 100_000
texts = st.text(st.characters(exclude_categories=["Cs"]))


def ids(path: Path, text: str, max_length: int = LONG, **options) -> list[int]:
    return list(Tokenizer(path, max_length=max_length, **options).encode([text])[0].ids)


@BOTH
def test_an_empty_text_has_the_special_tokens_alone(path):
    assert len(ids(path, "")) == 2


@BOTH
@pytest.mark.parametrize("max_length", [3, 8, 9])
def test_a_text_of_exactly_the_length_is_whole_and_one_more_is_cut(path, max_length):
    tokenizer = Tokenizer(path, max_length=max_length)
    word = len(ids(path, "the")) - 2
    assert word == 1
    below, exact, above = tokenizer.encode([" ".join(["the"] * (max_length - 2 + more)) for more in (-1, 0, 1)])
    assert [len(below.ids), len(exact.ids), len(above.ids)] == [max_length - 1, max_length, max_length]
    assert [below.truncated, exact.truncated, above.truncated] == [False, False, True]
    assert above.ids == exact.ids, "the end is cut, the special tokens stay"


@given(text=texts, prompt=texts, max_length=st.integers(3, 12))
def test_cut_texts_are_the_whole_ones_without_their_end(text, prompt, max_length):
    whole = ids(WORDPIECE, prompt + text)
    tokens = Tokenizer(WORDPIECE, max_length=max_length).encode([text], prompt)[0]
    assert tokens.truncated == (len(whole) > max_length)
    assert tokens.ids == (whole if len(whole) <= max_length else whole[: max_length - 1] + whole[-1:])


@BOTH
def test_neighbours_change_nothing(path):
    tokenizer = Tokenizer(path, max_length=16)
    several = ["a", "Green tea", "", "北京 🍵", "word " * 50]
    assert tokenizer.encode(several) == [tokenizer.encode([text])[0] for text in several]
    assert tokenizer.encode([]) == []


@BOTH
def test_a_word_of_a_megabyte_takes_no_time(path):
    began = time.monotonic()
    tokens = Tokenizer(path, max_length=64).encode(["x" * 2**20])[0]
    assert 3 <= len(tokens.ids) <= 64
    assert time.monotonic() - began < 10


@BOTH
@pytest.mark.parametrize("text", ["\0", "a\0b", "\ufeffa", "\u202e\u200b", "\uffff", "\r\n\t", "e\u0301" * 30])
def test_odd_characters_are_texts(path, text):
    assert len(ids(path, check_text(text, "it"))) >= 2


def test_padding_and_truncation_of_the_file_do_not_act(checkpoint_copy):
    path = checkpoint_copy()
    padding = {"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "[PAD]"}
    cutting = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 1}
    changed(lambda fields: fields.update(padding=padding, truncation=cutting))(path)
    text = "Green tea has been consumed for centuries."
    assert ids(path / "tokenizer.json", text) == ids(WORDPIECE, text)
    assert ids(path / "tokenizer.json", text, max_length=6) == ids(WORDPIECE, text, max_length=6)


def test_lowercasing_that_the_checkpoint_asks_for(checkpoint_copy):
    path = checkpoint_copy("arctic-m-v2")
    assert ids(path / "tokenizer.json", "Green TEA", lower=True) == ids(UNIGRAM, "green tea")
    assert ids(UNIGRAM, "Green TEA") != ids(UNIGRAM, "green tea")


@BOTH
def test_vocab_size_is_one_more_than_the_largest_id(path):
    vocabulary = json.loads(path.read_text())["model"]["vocab"]
    assert Tokenizer(path, max_length=64).vocab_size == len(vocabulary)


@BOTH
@pytest.mark.parametrize("value", [2, 0, -5])
def test_a_length_without_room_is_refused(path, value):
    tokenizer = Tokenizer(path, max_length=64)
    with pytest.raises(StellaError, match=f"max_seq_length {value} leaves no room for a token; the least is 3"):
        tokenizer.max_length = value
    assert tokenizer.max_length == 64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "x is None, not a text"),
        (5, "x is int 5, not a text"),
        (1.5, "x is float 1.5, not a text"),
        (True, "x is bool True, not a text"),
        (b"bytes", "x is bytes b'bytes', not a text"),
        (["a"], r"x is list \['a'\], not a text"),
        (np.float32(1), "x is float32"),
        ("ab\ud800c", r"x holds a lone surrogate \(U\+D800 at character 2\)"),
        ("\udc80", r"lone surrogate \(U\+DC80 at character 0\)"),
    ],
)
def test_what_is_no_text_is_named(value, message):
    with pytest.raises(StellaError, match=message):
        check_text(value, "x")


def test_messages_about_huge_values_are_short():
    with pytest.raises(StellaError) as error:
        check_text(b"x" * 10**6, "x")
    assert len(str(error.value)) < 150


def test_numpy_strings_are_texts():
    assert check_text(np.array(["a"])[0], "x") == "a"
