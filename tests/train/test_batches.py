"""Texts to arrays: what stands where, and how few shapes there are."""

import numpy as np
import pytest
from paths import GOLDENS

from stella_jax import StellaError
from stella_jax.checkpoint import Checkpoint
from train.batches import LENGTHS, Batcher, column_lengths, length_of, rows_of

TEXTS = [["tea", "a much longer text " * 12, ""], ["one", "two", "three"], ["x " * 40, "y", "z"]]


@pytest.fixture(scope="module")
def tokenizer():
    return Checkpoint.open(GOLDENS / "arctic-m-v2").tokenizer()  # its padding is 1


def test_columns_are_padded_each_to_its_own_length(tokenizer) -> None:
    batch = Batcher(tokenizer, rows=4, pad_id=1)(TEXTS)
    for ids, lengths, texts in zip(batch.ids, batch.lengths, TEXTS, strict=True):
        tokens = [text.ids for text in tokenizer.encode(texts)]
        assert ids.shape == (4, length_of(max(map(len, tokens))))
        assert ids.dtype == lengths.dtype == np.int32
        assert [row[:length].tolist() for row, length in zip(ids[:3], lengths[:3], strict=True)] == tokens
        assert (ids[np.arange(ids.shape[1]) >= lengths[:, None]] == 1).all()
    assert batch.tokens == sum(len(text.ids) for texts in TEXTS for text in tokenizer.encode(texts))


def test_a_short_batch_is_filled_with_rows_that_weigh_nothing(tokenizer) -> None:
    batch = Batcher(tokenizer, rows=8, pad_id=1)(TEXTS)
    assert batch.weights.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    for ids, lengths in zip(batch.ids, batch.lengths, strict=True):
        assert (ids[3:] == 1).all() and (lengths[3:] == 1).all()


def test_prompts_are_those_of_their_column(tokenizer) -> None:
    batch = Batcher(tokenizer, rows=3, pad_id=1, prompts=("query: ", "", ""))(TEXTS)
    (prompted,) = tokenizer.encode(["query: tea"])
    assert batch.ids[0][0, : batch.lengths[0][0]].tolist() == prompted.ids
    assert batch.ids[1][0, : batch.lengths[1][0]].tolist() == tokenizer.encode(["one"])[0].ids


def test_pairs_have_two_columns(tokenizer) -> None:
    assert len(Batcher(tokenizer, rows=3, pad_id=1)(TEXTS[:2]).ids) == 2


@pytest.mark.parametrize("texts", [[[], []], [["a"] * 4, ["b"] * 4]])
def test_too_many_rows_are_refused(tokenizer, texts) -> None:
    with pytest.raises(StellaError, match="cannot hold"):
        Batcher(tokenizer, rows=3, pad_id=1)(texts)


def test_lengths_are_few_and_hold_every_text() -> None:
    assert len({length_of(tokens) for tokens in range(1, 513)}) == 10
    assert all(length_of(tokens) >= tokens for tokens in range(1, 20_000))
    assert [length_of(length) for length in LENGTHS] == list(LENGTHS)


def test_columns_share_a_length_where_it_costs_little() -> None:
    assert column_lengths([17, 40, 33]) == [48, 48, 48]
    assert column_lengths([9, 200, 180]) == [16, 256, 192]
    assert column_lengths([9, 30]) == [16, 32]


def test_rows_are_what_devices_and_accumulation_divide() -> None:
    assert [rows_of(16), rows_of(16, 8), rows_of(16, 3), rows_of(16, 4, 3), rows_of(1, 8, 2)] == [16, 16, 18, 24, 16]
