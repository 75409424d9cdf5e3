"""Token counts to batches of fixed shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_jax.batching import Batch, bucket_lengths, pad, plan_batches, rows_of

lengths_of = st.integers(1, 8192).map(bucket_lengths)


@given(longest=st.integers(1, 100_000))
def test_buckets_ascend_and_hold_every_length(longest):
    lengths = bucket_lengths(longest)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] >= longest
    assert lengths[:-1] == [length for length in lengths if length < longest]
    assert all(length % 8 == 0 for length in lengths), "attention runs in blocks that divide the length"


def test_the_number_of_shapes_stays_small():
    assert len(bucket_lengths(512)) == 32
    assert len(bucket_lengths(8192)) == 48


@given(longest=st.integers(1, 8192), longer=st.integers(1, 8192))
def test_a_text_keeps_its_bucket_whatever_the_limit(longest, longer):
    short, long = sorted((bucket_lengths(longest), bucket_lengths(longer)), key=len)
    assert long[: len(short)] == short


@given(st.lists(st.integers(1, 8192), max_size=200))
def test_little_is_padded(counts):
    """A bucket is less than a quarter longer than its texts, or eight tokens."""
    for batch in plan_batches(counts, bucket_lengths(8192), 512):
        for index in batch.indices:
            assert batch.length < max(counts[index] * 1.25, counts[index] + 8)


@given(
    counts=st.lists(st.integers(1, 700), max_size=60),
    budget=st.integers(1, 2000),
    max_rows=st.none() | st.integers(1, 5),
)
def test_every_text_is_in_one_batch_of_the_shape_of_its_length(counts, budget, max_rows):
    lengths = bucket_lengths(700)
    batches = plan_batches(counts, lengths, budget, max_rows)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(counts)))
    for batch in batches:
        assert batch.rows == rows_of(batch.length, budget, max_rows)
        assert 1 <= len(batch.indices) <= batch.rows
        assert batch.rows * batch.length <= budget or batch.rows == 1
        for index in batch.indices:
            assert batch.length == min(length for length in lengths if length >= counts[index])


@given(st.lists(st.integers(1, 700), max_size=60), st.randoms(use_true_random=False))
def test_the_shape_of_a_text_depends_on_its_own_length_only(counts, random):
    shapes = {}
    for _ in range(3):
        random.shuffle(counts)
        for batch in plan_batches(counts, bucket_lengths(700), 512):
            for index in batch.indices:
                assert shapes.setdefault(counts[index], (batch.length, batch.rows)) == (batch.length, batch.rows)


def test_the_longest_run_first():
    lengths = [batch.length for batch in plan_batches([3, 500, 40, 41, 7], bucket_lengths(512), 512)]
    assert lengths == sorted(lengths, reverse=True)


def test_no_texts_no_batches():
    assert plan_batches([], bucket_lengths(512), 512) == []


def test_padding():
    ids, lengths = pad([[5, 6, 7], [1], [8, 9]], Batch(length=4, rows=3, indices=(0, 2)), pad_id=99)
    np.testing.assert_array_equal(ids, [[5, 6, 7, 99], [8, 9, 99, 99], [99, 99, 99, 99]])
    np.testing.assert_array_equal(lengths, [3, 2, 1])
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize(
    ("length", "budget", "max_rows", "rows"),
    [(8, 512, None, 64), (512, 512, None, 1), (8, 512, 4, 4), (600, 512, None, 1)],
)
def test_rows_fill_the_budget(length, budget, max_rows, rows):
    assert rows_of(length, budget, max_rows) == rows
