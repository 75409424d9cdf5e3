"""Text to ids: truncation, valid texts, and settings of the file that are ignored."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from corruptions import tokenizer as changed
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from paths import GOLDENS

from stella_jax import StellaError
from stella_jax.tokenizer import tokenizer as module
from stella_jax.tokenizer.tokenizer import Tokenizer, Tokens, check_text

WORDPIECE, UNIGRAM = GOLDENS / "stella/tokenizer.json", GOLDENS / "arctic-m-v2/tokenizer.json"
BOTH = pytest.mark.parametrize("path", [WORDPIECE, UNIGRAM], ids=["wordpiece", "unigram"])
LONG = 100_000
texts = st.text(st.characters(exclude_categories=["Cs"]))


def ids(path: Path, text: str, max_length: int = LONG, **options) -> list[int]:
    return list(Tokenizer(path, max_length=max_length, **options).encode([text])[0].ids)


@BOTH
def test_empty_text_has_only_special_tokens(path):
    assert len(ids(path, "")) == 2


@BOTH
@pytest.mark.parametrize("max_length", [3, 8, 9])
def test_text_of_exactly_max_length_is_not_truncated(path, max_length):
    tokenizer = Tokenizer(path, max_length=max_length)
    word = len(ids(path, "the")) - 2
    assert word == 1
    below, exact, above = tokenizer.encode([" ".join(["the"] * (max_length - 2 + more)) for more in (-1, 0, 1)])
    assert [len(below.ids), len(exact.ids), len(above.ids)] == [max_length - 1, max_length, max_length]
    assert [below.truncated, exact.truncated, above.truncated] == [False, False, True]
    assert above.ids == exact.ids, "the end is cut, the special tokens stay"


@given(text=texts, prompt=texts, max_length=st.integers(3, 12))
def test_truncated_texts_are_prefixes(text, prompt, max_length):
    assume(not prompt or len(ids(WORDPIECE, prompt)) < max_length)
    whole = ids(WORDPIECE, prompt + text)
    tokens = Tokenizer(WORDPIECE, max_length=max_length).encode([text], prompt)[0]
    assert tokens.truncated == (len(whole) > max_length)
    assert tokens.ids == (whole if len(whole) <= max_length else whole[: max_length - 1] + whole[-1:])


@BOTH
def test_a_prompt_leaves_room_for_a_text(path, refused):
    """Also where the space at its end becomes a token of its own, or part of the text's first one."""
    prompt = "the the the "
    tokenizer = Tokenizer(path, max_length=6)
    one, other = tokenizer.encode(["tea", "cup"], prompt)
    assert one.ids != other.ids
    for max_length in (5, 3):
        tokenizer.max_length = max_length
        with refused(f"prompt {prompt!r}", "5 tokens", f"length of {max_length}"):
            tokenizer.encode(["tea"], prompt)


@BOTH
def test_neighbors_change_nothing(path):
    tokenizer = Tokenizer(path, max_length=16)
    several = ["a", "Green tea", "", "北京 🍵", "word " * 50]
    assert tokenizer.encode(several) == [tokenizer.encode([text])[0] for text in several]
    assert tokenizer.encode([]) == []


@BOTH
def test_word_of_a_megabyte_is_fast(path):
    began = time.monotonic()
    tokens = Tokenizer(path, max_length=64).encode(["x" * 2**20])[0]
    assert 3 <= len(tokens.ids) <= 64
    assert time.monotonic() - began < 10


@BOTH
@pytest.mark.parametrize("text", ["\0", "a\0b", "\ufeffa", "\u202e\u200b", "\uffff", "\r\n\t", "e\u0301" * 30])
def test_unusual_characters(path, text):
    assert len(ids(path, check_text(text, "it"))) >= 2


def test_padding_and_truncation_of_the_file_are_ignored(checkpoint_copy):
    path = checkpoint_copy()
    padding = {"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "[PAD]"}
    cutting = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 1}
    changed(lambda fields: fields.update(padding=padding, truncation=cutting))(path)
    text = "Green tea has been consumed for centuries."
    assert ids(path / "tokenizer.json", text) == ids(WORDPIECE, text)
    assert ids(path / "tokenizer.json", text, max_length=6) == ids(WORDPIECE, text, max_length=6)


def test_lowercasing(checkpoint_copy):
    path = checkpoint_copy("arctic-m-v2")
    assert ids(path / "tokenizer.json", "Green TEA", lower=True) == ids(UNIGRAM, "green tea")
    assert ids(UNIGRAM, "Green TEA") != ids(UNIGRAM, "green tea")


@BOTH
def test_vocab_size_is_one_more_than_the_largest_id(path):
    vocabulary = json.loads(path.read_text())["model"]["vocab"]
    assert Tokenizer(path, max_length=64).vocab_size == len(vocabulary)


@BOTH
@pytest.mark.parametrize("value", [2, 0, -5])
def test_too_small_max_length(path, value, refused):
    tokenizer = Tokenizer(path, max_length=64)
    with refused(f"max_seq_length {value}"):
        tokenizer.max_length = value
    assert tokenizer.max_length == 64


@pytest.mark.parametrize(
    "value", [None, 5, 1.5, True, b"bytes", ["a"], np.float32(1), "ab\ud800c", "\udc80"], ids=ascii
)
def test_invalid_texts(value, refused):
    with refused("x: "):
        check_text(value, "x")


def test_short_messages_about_huge_values():
    with pytest.raises(StellaError) as error:
        check_text(b"x" * 10**6, "x")
    assert len(str(error.value)) < 150


def test_numpy_strings_are_accepted():
    assert check_text(np.array(["a"])[0], "x") == "a"


# Long texts, which are not read to the end


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory) -> Path:
    """A tokenizer like Qwen2's: NFC, its split, bytes, an end-of-text token."""
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    split += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["the green tea  has been, consumed!\n\n for centuries."] * 9, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    path = tmp_path_factory.mktemp("byte-level") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(params=["wordpiece", "unigram", "bytes"])
def tokenizer_file(request, byte_level) -> Path:
    return {"wordpiece": WORDPIECE, "unigram": UNIGRAM, "bytes": byte_level}[request.param]


def all_at_once(path: Path, text: str, max_length: int) -> Tokens:
    """The library's tokens of the whole text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_length)
    encoding = tokenizer.encode(text)
    return Tokens(encoding.ids, bool(encoding.overflowing))


PIECES = [
    "the ",
    "tea",
    "x",
    " ",
    "\n",
    "\r\n",
    "\t",
    ".",
    "!",
    "5",
    "'s",
    "[SEP]",
    "<mask>",
    "\x01",
    "\u200b",
    "\u3000",
]
PIECES += ["e\u0301", "\u0301", "\u0327", "\ufdfa", "\u4eac", "\uff0c", "\u1100", "\u1161", "\u0600"]
PIECES += ["\u03a3", "\u0130", "\U0001f375", "<|endoftext|>"]
runs = st.lists(st.tuples(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), st.integers(1, 300)), max_size=6)

# A prompt, and a maximum length with room for a text after it.
prompts = st.tuples(st.just(""), st.integers(3, 12)) | st.tuples(st.sampled_from(["query: ", "e"]), st.integers(9, 16))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=runs, prompted=prompts, lower=st.booleans())
def test_long_texts_have_the_tokens_of_the_whole_text(tokenizer_file, runs, prompted, lower):
    prompt, max_length = prompted
    text = "".join("".join(unit) * count for unit, count in runs)
    tokenizer = Tokenizer(tokenizer_file, max_length=max_length, lower=lower)
    whole = (prompt + text).lower() if lower else prompt + text
    assert tokenizer.encode([text, "tea", text], prompt)[::2] == [all_at_once(tokenizer_file, whole, max_length)] * 2


@given(runs=runs, prompted=prompts | st.tuples(st.just(""), st.just(2)))
def test_end_of_text_survives_truncation(runs, prompted):
    prompt, max_length = prompted
    text = "".join("".join(unit) * count for unit, count in runs)
    file = GOLDENS / "gte-qwen2/tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(file))
    end = library.token_to_id("<|endoftext|>")
    whole = [*library.encode(prompt + text).ids, end]
    expected = whole if len(whole) <= max_length else [*whole[: max_length - 1], end]
    found = Tokenizer(file, max_length=max_length, end_of_text="<|endoftext|>").encode([text, "tea", text], prompt)
    assert found[::2] == [Tokens(expected, len(whole) > max_length)] * 2


@pytest.mark.parametrize("unit", ["x", " ", "\u0301", "\u200b", "\x01", "\u4eac", "\u0600", "\u03a3", "Σ."])
def test_unbroken_runs_before_and_after_words(tokenizer_file, unit):
    run = unit * (5_000 // len(unit))
    tokenizer = Tokenizer(tokenizer_file, max_length=16)
    for text in (run, run + " green tea", "green tea" + run, f"green {run} tea" * 2, "green tea " * 3 + run):
        assert tokenizer.encode([text]) == [all_at_once(tokenizer_file, text, 16)]


def test_final_sigma_beyond_the_first_read():
    text = "x " * 100 + "\u03a3" + "." * 3000 + "a " * 3000
    tokens = Tokenizer(UNIGRAM, max_length=128, lower=True).encode([text])
    assert tokens == [all_at_once(UNIGRAM, text.lower(), 128)]


def test_no_more_is_read_than_needed(tokenizer_file):
    tokenizer = Tokenizer(tokenizer_file, max_length=512)
    began = time.monotonic()
    [tokens] = tokenizer.encode(["green tea, " * 5_000_000])
    assert (len(tokens.ids), tokens.truncated) == (512, True)
    assert time.monotonic() - began < 2
    assert tokens.ids == tokenizer.encode(["green tea, " * 1000])[0].ids


@pytest.mark.parametrize("blank", [False, True])
def test_text_beyond_the_limit_is_cut(monkeypatch, blank):
    monkeypatch.setattr(module, "MAX_READ", 10_000)
    tokenizer = Tokenizer(WORDPIECE, max_length=8)
    text = (" " if blank else "x") * 10_000
    within, beyond = tokenizer.encode([text, text + " green tea"])
    assert (within.truncated, beyond.truncated) == (False, True)
    assert within.ids == beyond.ids


def test_few_characters_are_tokenized_at_once(monkeypatch):
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 20)
    tokenizer = Tokenizer(WORDPIECE, max_length=16)
    several = ["green tea", "", "x" * 50, "tea", "tea", "y" * 1000, ""]
    assert [len(batch) for batch in tokenizer._batches(several)] == [2, 1, 2, 1, 1]
    assert tokenizer.encode(several) == [all_at_once(WORDPIECE, text, 16) for text in several]
