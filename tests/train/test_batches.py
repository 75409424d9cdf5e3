"""Batches: each row finds its texts after sorting, grouping, splitting and padding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import GOLDENS

from stella_jax import load
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.tokenizer.tokenizer import Tokenizer
from train.batches import Batcher, TrainBatch, padded_batch_size

TEXTS = [["tea", "a much longer text " * 12, ""], ["one", "two", "three"], ["x " * 40, "y", "z"]]
PAD = 1
TOKENIZER = Checkpoint.open(GOLDENS / "arctic-m-v2").tokenizer()  # its padding is 1


def tokens_of(texts: Sequence[str], tokenizer: Tokenizer = TOKENIZER) -> list[list[int]]:
    return [list(text.ids) for text in tokenizer.encode(texts)]


def rows_in(batch: TrainBatch) -> list[list[list[int]]]:
    """The token ids of each row's texts, those of weight 0 too, as the places lead to them."""
    rows = []
    for i, places in enumerate(batch.places):
        groups = zip(batch.ids, batch.lengths, strict=True)
        pairs = [pair for ids, lengths in groups for pair in zip(ids[i], lengths[i], strict=True)]
        texts = [ids[:length].tolist() for ids, length in pairs]
        rows += [[texts[place] for place in row] for row in places]
        assert sorted(places.ravel()) == list(range(len(texts)))
    return rows


@st.composite
def batches(draw) -> tuple[Batcher, list[list[list[str]]]]:
    """A batcher, fitted or not, and batches of texts of up to 40 words."""
    texts = st.integers(0, 40).map(lambda words: " ".join(["tea"] * words))
    columns, size = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    batcher = Batcher(TOKENIZER, PAD, size, devices=draw(st.integers(1, 3)), micro_batches=draw(st.integers(1, 3)))
    rows = st.lists(st.lists(texts, min_size=columns, max_size=columns), min_size=1, max_size=size)
    drawn = [[*map(list, zip(*draw(rows), strict=True))] for _ in range(3)]
    return (batcher.fit(drawn[:2]) if draw(st.booleans()) else batcher), drawn


@given(batches())
def test_each_row_finds_its_texts(drawn) -> None:
    batcher, all_texts = drawn
    for texts in all_texts:
        batch = batcher(texts)
        rows = [list(row) for row in zip(*map(tokens_of, texts), strict=True)]
        assert rows_in(batch) == [rows[i % len(rows)] for i in range(batcher.rows)]
        assert batch.weights.ravel().tolist() == [1] * len(rows) + [0] * (batcher.rows - len(rows))
        assert batch.tokens == sum(len(text) for row in rows for text in row)


@given(batches())
def test_texts_are_padded_on_the_right(drawn) -> None:
    batcher, all_texts = drawn
    batch = batcher(all_texts[0])
    for ids, lengths in zip(batch.ids, batch.lengths, strict=True):
        assert {array.dtype for array in (ids, lengths, batch.places)} == {np.dtype(np.int32)}
        assert (lengths >= 1).all()
        assert ((np.arange(ids.shape[-1]) >= lengths[..., None]) <= (ids == PAD)).all()


def shapes_of(batch: TrainBatch) -> list[tuple[int, ...]]:
    return [ids.shape for ids in batch.ids]


def test_without_fit_all_texts_are_padded_to_a_power_of_two() -> None:
    batch = Batcher(TOKENIZER, PAD, batch_size=4)(TEXTS)
    longest = max(len(ids) for column in TEXTS for ids in tokens_of(column))
    assert shapes_of(batch) == [(1, 12, 128)] and 64 < longest <= 128


def test_after_fit_long_texts_have_their_own_group() -> None:
    batch = Batcher(TOKENIZER, PAD, batch_size=3).fit([TEXTS], all_seen=True)(TEXTS)
    assert shapes_of(batch) == [(1, 2, 88), (1, 7, 8)]


def test_devices_divide_groups_and_micro_batches_share_a_shape() -> None:
    batcher = Batcher(TOKENIZER, PAD, batch_size=8, devices=2, micro_batches=2)
    texts = [["tea"] * 7 + ["tea " * 30], ["one"] * 8]
    batch = batcher.fit([texts], all_seen=True)(texts)
    assert shapes_of(batch) == [(2, 2, 40), (2, 6, 8)]
    assert batch.places.shape == (2, 4, 2) and batch.weights.shape == (2, 4)


def test_texts_longer_than_all_sampled_ones_still_have_a_shape() -> None:
    batcher = Batcher(TOKENIZER, PAD, batch_size=3).fit([[["tea"] * 3]])
    batch = batcher([["tea " * 600] * 3])
    assert shapes_of(batch) == [(1, 3, TOKENIZER.max_length)]


def test_each_column_has_its_prompt() -> None:
    rows = rows_in(Batcher(TOKENIZER, PAD, batch_size=3, prompts=("query: ", "", ""))(TEXTS))
    assert [row[0] for row in rows] == tokens_of([f"query: {text}" for text in TEXTS[0]])
    assert [row[1] for row in rows] == tokens_of(TEXTS[1])


def test_further_columns_are_split_and_padded_like_rows() -> None:
    batch = Batcher(TOKENIZER, PAD, batch_size=4, micro_batches=2)(TEXTS, {"score": np.array([1, 2, 3], np.float32)})
    assert batch.columns["score"].tolist() == [[1, 2], [3, 1]] and batch.weights.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("texts", [[[], []], [["a"] * 4, ["b"] * 4]])
def test_too_many_rows_and_no_rows(texts, refused) -> None:
    with refused("texts"):
        Batcher(TOKENIZER, PAD, batch_size=3)(texts)


def test_columns_of_unequal_length(refused) -> None:
    with refused("texts"):
        Batcher(TOKENIZER, PAD, batch_size=3)([["a", "b"], ["c", "d"], ["e"]])


def test_a_model_brings_its_tokenizer(refused) -> None:
    model = load(GOLDENS / "arctic-m-v2")
    batch = Batcher.for_model(model, 3, max_length=16)(TEXTS)
    assert shapes_of(batch) == [(1, 9, 16)]
    assert rows_in(Batcher.for_model(model, 3)(TEXTS))[1][0] == tokens_of([TEXTS[0][1]])[0]
    assert (batch.ids[0][0, -1, batch.lengths[0][0, -1] :] == PAD).all()
    with refused("model"):
        Batcher.for_model(model.without_source(), 3)


def test_devices_and_micro_batches_divide_the_rows() -> None:
    arguments = [(16,), (16, 8), (16, 3), (16, 4, 3), (1, 8, 2)]
    assert [padded_batch_size(*each) for each in arguments] == [16, 16, 18, 24, 16]


@pytest.mark.parametrize(
    ("texts", "columns", "name"),
    [
        ([], {}, "texts"),
        (["abcd", "efgh"], {}, "texts"),
        ([[1, 2], ["a", "b"]], {}, "texts"),
        ([["a", "b"], ["c", "d"]], {"score": np.ones(3)}, "'score'"),
        ([["a", "b"], ["c", "d"]], {"weights": np.ones(2)}, "'weights'"),
    ],
)
def test_invalid_batches(texts, columns, name: str, refused) -> None:
    with refused(name):
        Batcher(TOKENIZER, PAD, 4)(texts, columns)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2.5}, {"prompts": {"anchor": "x"}}])
def test_invalid_arguments_of_a_batcher(options, refused) -> None:
    with refused(next(iter(options))):
        Batcher(TOKENIZER, PAD, **{"batch_size": 4} | options)


def test_a_batcher_of_something_else(refused) -> None:
    model: Any = "tiny"
    with refused("model: ", "str"):
        Batcher.for_model(model, 4)


@pytest.mark.parametrize("max_length", [0, 10**6])
def test_a_length_above_the_encoder_s_limit(max_length: int, refused) -> None:
    with refused("max_length", str(max_length)):
        Batcher.for_model(load("tiny"), 4, max_length=max_length)
