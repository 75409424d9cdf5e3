"""Packing token counts into batches of fixed shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_jax.batching import Batch, Packer, bucket_lengths, pad, rows_of


def packed(groups: list[list[int]], max_length: int, budget: int, **options) -> list[Batch]:
    """All batches of groups with these token counts; each group waits for the next one only."""
    packer = Packer(max_length, budget, **options)
    batches = []
    for number, counts in enumerate(groups):
        batches += [*packer.add(number, counts), *packer.flush(number - 1)]
        earlier = {(group, i) for group in range(number) for i in range(len(groups[group]))}
        assert earlier <= {text for batch in batches for text in batch.texts}
    return [*batches, *packer.flush(len(groups) - 1)]


@given(longest=st.integers(1, 100_000))
def test_buckets_ascend_and_hold_every_length(longest):
    lengths = bucket_lengths(longest)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] >= longest
    assert lengths[:-1] == [length for length in lengths if length < longest]
    assert all(length % 8 == 0 for length in lengths), "attention runs in blocks that divide the length"


def test_number_of_shapes():
    assert len(bucket_lengths(512)) == 32
    assert len(bucket_lengths(8192)) == 48


@given(longest=st.integers(1, 8192), longer=st.integers(1, 8192))
def test_bucket_of_a_text_does_not_depend_on_the_limit(longest, longer):
    short, long = sorted((bucket_lengths(longest), bucket_lengths(longer)), key=len)
    assert long[: len(short)] == short


@given(st.lists(st.integers(1, 8192), max_size=200))
def test_share_of_padding(counts):
    """A bucket is at most a quarter, or eight tokens, longer than its texts."""
    for batch in packed([counts], 8192, 512):
        for _, index in batch.texts:
            assert batch.length < max(counts[index] * 1.25, counts[index] + 8)


groups_of = st.lists(st.lists(st.integers(1, 700), max_size=30), max_size=4)


@given(
    groups=groups_of,
    budget=st.integers(1, 2000),
    max_batch_rows=st.none() | st.integers(1, 5),
    devices=st.integers(1, 4),
)
def test_each_text_is_in_one_batch_of_its_bucket(groups, budget, max_batch_rows, devices):
    lengths = bucket_lengths(700)
    batches = packed(groups, 700, budget, max_batch_rows=max_batch_rows, devices=devices)
    expected = [(group, i) for group, counts in enumerate(groups) for i in range(len(counts))]
    assert sorted(text for batch in batches for text in batch.texts) == expected
    for batch in batches:
        assert batch.rows == devices * rows_of(batch.length, budget, max_batch_rows)
        assert 1 <= len(batch.texts) <= batch.rows
        assert batch.rows * batch.length <= devices * budget or batch.rows == devices
        assert batch.tokens == sum(groups[group][i] for group, i in batch.texts)
        for group, i in batch.texts:
            assert batch.length == min(length for length in lengths if length >= groups[group][i])


@given(groups_of, st.randoms(use_true_random=False))
def test_shape_depends_only_on_the_length_of_the_text(groups, random):
    shapes = {}
    for _ in range(3):
        random.shuffle(groups)
        for batch in packed(groups, 700, 512):
            for group, i in batch.texts:
                shape = (batch.length, batch.rows)
                assert shapes.setdefault(groups[group][i], shape) == shape


@given(counts=st.lists(st.integers(1, 512), max_size=40))
def test_shapes_match_the_batches(counts):
    shapes = Packer(512, 256, devices=2).shapes(counts)
    assert len(shapes) == len(set(shapes))
    assert set(shapes) == {(batch.rows, batch.length) for batch in packed([counts], 512, 256, devices=2)}


def test_short_batches_wait_for_the_next_group():
    """Ten groups of three rows with four rows per batch: eight batches, not ten."""
    batches = packed([[100] * 3] * 10, 512, 4 * 104)
    assert [len(batch.texts) for batch in batches] == [4, 4, 4, 4, 4, 4, 4, 2]


def test_longest_batches_come_first():
    lengths = [batch.length for batch in packed([[3, 500, 40, 41, 7]], 512, 512)]
    assert lengths == sorted(lengths, reverse=True)


def test_no_texts():
    assert packed([], 512, 512) == packed([[], []], 512, 512) == []


def test_padding():
    batch = Batch(length=4, rows=3, texts=((0, 0), (0, 2)), tokens=5)
    ids, lengths = pad([[5, 6, 7], [8, 9]], batch, pad_id=99)
    np.testing.assert_array_equal(ids, [[5, 6, 7, 99], [8, 9, 99, 99], [99, 99, 99, 99]])
    np.testing.assert_array_equal(lengths, [3, 2, 1])
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize(
    ("length", "budget", "max_batch_rows", "rows"),
    [(8, 512, None, 64), (512, 512, None, 1), (8, 512, 4, 4), (600, 512, None, 1)],
)
def test_rows_fill_the_budget(length, budget, max_batch_rows, rows):
    assert rows_of(length, budget, max_batch_rows) == rows
