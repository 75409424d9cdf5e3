"""Splits: every byte of every input in one of them, in order, from sizes alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stella_jax.readers.splits import FileSize, default_split_bytes, plan_splits

files = st.lists(st.builds(FileSize, st.integers(0, 50), st.booleans(), st.just(0)), max_size=12)


@given(files, st.integers(1, 20))
def test_every_byte_is_in_exactly_one_split(sizes: list[FileSize], split_bytes: int) -> None:
    splits = plan_splits(sizes, split_bytes)
    assert [split.number for split in splits] == list(range(len(splits)))
    byte_ranges = [each for split in splits for each in split.byte_ranges]
    found: list[int] = []
    for i, size in enumerate(sizes):
        own = [each for each in byte_ranges if each.input == i]
        assert [each.start for each in own] == [0, *(each.stop for each in own[:-1])]
        assert own[-1].stop == size.size
        found += [i] * len(own)
    assert [each.input for each in byte_ranges] == found


@given(files, st.integers(1, 20))
def test_the_size_of_a_split(sizes: list[FileSize], split_bytes: int) -> None:
    for split in plan_splits(sizes, split_bytes):
        if split.size > split_bytes:
            [byte_range] = [each for each in split.byte_ranges if each.stop > each.start]
            assert not sizes[byte_range.input].can_be_cut


@given(files, files, st.integers(1, 20))
def test_added_files_do_not_change_earlier_splits(before: list, added: list, split_bytes: int) -> None:
    later = [file._replace(generation=1) for file in added]
    old = plan_splits(before, split_bytes)
    assert plan_splits([*before, *later], split_bytes)[: len(old)] == old


def test_small_files_share_a_split() -> None:
    sizes = [FileSize(size, False, 0) for size in (3, 3, 3, 3, 11, 1, 1)]
    assert [[each.input for each in split.byte_ranges] for split in plan_splits(sizes, 10)] == [
        [0, 1, 2],
        [3],
        [4],
        [5, 6],
    ]


@pytest.mark.parametrize(
    ("total", "size"), [(0, 2**14), (10**5, 2**14), (10**7, 312_500), (10**8, 2**20), (10**13, 2**26)]
)
def test_default_size(total: int, size: int) -> None:
    assert default_split_bytes(total) == size
