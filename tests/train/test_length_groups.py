"""Shapes of training batches: they hold what they are chosen for, are few, and waste little."""

import gzip
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stella_jax import Stella
from stella_jax.batching import bucket_lengths
from train.length_groups import (
    MAX_GROUPS,
    MAX_SHAPES,
    WORTH_A_GROUP,
    Shape,
    choose_shapes,
    fits,
    group,
    padded_tokens,
)

MAX_LENGTH = 96
WORDNET = Path(__file__).parent.parent.parent / "examples/wordnet/wordnet_triplets_train.jsonl.gz"


@st.composite
def batches(draw) -> tuple[np.ndarray, int]:
    """Lengths (batches, texts), and a divisor of the number of texts."""
    multiple, groups, count = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 12)), draw(st.integers(1, 20))
    rng, skew = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.sampled_from([0.0, 1.0, 4.0]))
    return 1 + (rng.random((count, multiple * groups)) ** skew * (MAX_LENGTH - 1)).astype(int), multiple


@given(batches(), st.booleans())
def test_shapes_fit_every_batch_they_were_chosen_for(drawn, all_seen) -> None:
    lengths, multiple = drawn
    shapes = choose_shapes(lengths, MAX_LENGTH, multiple, all_seen)
    assert 1 <= len(shapes) <= MAX_SHAPES and len({*shapes}) == len(shapes)
    for shape in shapes:
        assert sum(texts for texts, _ in shape) == lengths.shape[1] and len(shape) <= MAX_GROUPS
        assert all(texts % multiple == 0 for texts, _ in shape)
        tokens = [tokens for _, tokens in shape]
        assert tokens == sorted(set(tokens), reverse=True) and {*tokens} <= {*bucket_lengths(MAX_LENGTH)}
    assert sorted(map(padded_tokens, shapes)) == [padded_tokens(shape) for shape in shapes]
    assert fits(shapes[-1], np.full(lengths.shape[1], MAX_LENGTH))


def first_fitting(lengths: np.ndarray, shapes: list[Shape]) -> int:
    """Padded tokens of the shape chosen for a batch."""
    return next(padded_tokens(shape) for shape in shapes if fits(shape, -np.sort(-lengths)))


# The cheapest shape for most of these rows has more tokens than that for all of them, which has a group more.
UNEVEN = [
    [63, 55, 50, 28, 25, 24, 21, 7],
    [52, 31, 27, 17, 17, 16, 13, 12],
    [58, 41, 39, 38, 24, 18, 10, 2],
    [39, 39, 29, 25, 25, 15, 12, 9],
    [61, 55, 46, 29, 24, 21, 7, 4],
    [63, 48, 46, 32, 29, 24, 20, 8],
    [45, 40, 36, 33, 29, 18, 16, 6],
    [39, 31, 29, 26, 24, 17, 9, 5],
    [57, 46, 42, 38, 34, 21, 18, 5],
    [61, 47, 31, 22, 14, 12, 11, 10],
]


@given(batches())
@example((np.array(UNEVEN), 1))
def test_the_shape_for_the_longest_fits_every_sampled_batch(drawn) -> None:
    lengths, multiple = drawn
    shapes = choose_shapes(lengths, MAX_LENGTH, multiple, all_seen=True)
    longest = (-np.sort(-lengths)).max(axis=0)
    for batch in lengths:
        assert first_fitting(batch, shapes) <= padded_tokens(group(longest, MAX_LENGTH, multiple))


@given(batches(), st.integers(0, 2**32 - 1))
def test_shapes_leave_room_for_one_more_long_text(drawn, seed) -> None:
    lengths, multiple = drawn
    shapes = choose_shapes(lengths, MAX_LENGTH, multiple)
    longest = (-np.sort(-lengths)).max(axis=0)
    batch = lengths[seed % len(lengths)].copy()
    batch[seed % len(batch)] = longest[0]
    with_room = group(np.concatenate([longest[:1], longest[:-1]]), MAX_LENGTH, multiple)
    assert first_fitting(batch, shapes) <= padded_tokens(with_room)


def cheapest(longest: np.ndarray, groups: int, multiple: int) -> int:
    """The minimum of padded tokens over all splits into at most so many groups, by brute force."""
    buckets = bucket_lengths(MAX_LENGTH)
    rows = range(0, len(longest), multiple)

    def cost(cuts: tuple[int, ...]) -> int:
        ends = [*cuts[1:], len(longest)]
        return sum(
            (end - cut) * min(b for b in buckets if b >= longest[cut]) for cut, end in zip(cuts, ends, strict=True)
        )

    return min(cost((0, *cuts)) for n in range(groups) for cuts in combinations(rows[1:], n))


@given(batches())
def test_a_shape_has_the_fewest_tokens_for_its_number_of_groups(drawn) -> None:
    lengths, multiple = drawn
    longest = -np.sort(-lengths[0])
    shape = group(longest, MAX_LENGTH, multiple)
    assert fits(shape, longest)
    assert padded_tokens(shape) == cheapest(longest, len(shape), multiple)
    assert padded_tokens(shape) <= WORTH_A_GROUP * cheapest(longest, MAX_GROUPS, multiple)


def test_texts_of_one_length_need_one_shape() -> None:
    assert choose_shapes(np.full((5, 12), 16), 16, 4, all_seen=True) == [((12, 16),)]
    assert choose_shapes(np.full((5, 12), 13), 64, 4) == [((12, 16),), ((12, 64),)]


def test_the_longest_group_is_first() -> None:
    assert group(np.array([60, 30, *[5] * 30]), 64) == ((2, 64), (30, 8))
    assert group(np.array([60, 30, *[5] * 30]), 64, multiple=8) == ((8, 64), (24, 8))


@pytest.fixture(scope="module")
def wordnet() -> np.ndarray:
    """Tokens (batches, 3, rows) of its training triplets in batches of 64."""
    with gzip.open(WORDNET, "rt") as file:
        rows = [json.loads(line) for line in file]
    tokenizer = Stella.from_pretrained("tiny").tokenizer
    tokenizer.max_length = 64
    columns = [tokenizer.encode([row[name] for row in rows], "") for name in ("anchor", "positive", "negative")]
    counts = np.array([[len(text.ids) for text in column] for column in columns])
    order = np.random.default_rng(0).permutation(len(rows))[: len(rows) // 64 * 64]
    return counts[:, order].reshape(3, -1, 64).swapaxes(0, 1)


def test_wordnet_batches_have_little_padding(wordnet) -> None:
    """Shapes chosen from 20 batches, compared with padding each column to its longest text's bucket."""
    buckets = np.array(bucket_lengths(64))
    by_text = wordnet.reshape(len(wordnet), -1)
    shapes = choose_shapes(by_text[:20], 64)
    grouped = sum(first_fitting(batch, shapes) for batch in by_text)
    by_column = 64 * buckets[np.searchsorted(buckets, wordnet.max(axis=2))].sum()
    per_token = {"in groups": grouped / wordnet.sum(), "by column": by_column / wordnet.sum()}
    print({name: f"{tokens:.2f} tokens are computed for each" for name, tokens in per_token.items()})
    assert grouped < 0.75 * by_column
