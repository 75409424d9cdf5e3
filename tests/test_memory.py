"""Copies of large arrays are equal, for any memory order."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest

from stella_jax.memory import STRIP, aligned, copy, in_threads


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 4), (1,), (3, 5), (2, STRIP + 1, 3)])
def test_jax_uses_an_aligned_array_without_a_copy(shape, dtype):
    array = aligned(shape, dtype)
    array[...] = 1
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.flags.c_contiguous
    taken = jax.device_put(array, jax.devices("cpu")[0])
    if array.size:
        assert taken.unsafe_buffer_pointer() == array.ctypes.data


def test_donation_does_not_overwrite_the_array():
    array = aligned((100,), np.float32)
    array[...] = 1
    jax.jit(lambda x: x + 1, donate_argnums=0)(jax.device_put(array)).block_until_ready()
    np.testing.assert_array_equal(array, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("axes", [*itertools.permutations(range(3))])
def test_copy_is_an_assignment(axes, dtype):
    source = np.random.default_rng(0).standard_normal((3, STRIP + 5, 2 * STRIP), np.float32).transpose(axes)
    into = aligned(source.shape, dtype)
    copy(source, into)
    assert into.tobytes() == source.astype(dtype, order="C").tobytes()


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (1, 1), (5, 0), (7, 1), (1, 7)])
def test_small_arrays(shape):
    source, into = np.ones(shape, np.float32).T, aligned(shape[::-1], np.float32)
    copy(source, into)
    np.testing.assert_array_equal(into, source)


def test_parts_of_arrays():
    source, into = np.arange(100.0).reshape(10, 10), np.zeros((10, 10))
    copy(source.T[2:5, 1:9], into[4:7, :8])
    np.testing.assert_array_equal(into[4:7, :8], source.T[2:5, 1:9])
    assert into.sum() == source.T[2:5, 1:9].sum()


@pytest.mark.parametrize("count", [0, 1, 20])
def test_threads_return_in_order(count):
    assert in_threads(lambda i: i * i, count) == [i * i for i in range(count)]


def test_first_error_is_raised():
    def fail(i: int) -> None:
        raise ValueError(str(i))

    with pytest.raises(ValueError, match=r"^0$"):
        in_threads(fail, 20)
