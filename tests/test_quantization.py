"""Quantized embeddings equal those of sentence-transformers bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stella_jax.option_values import PRECISIONS
from stella_jax.quantization import SCALAR, Ranges, dequantize, finite_rows, quantize, vector_layout

MAX = float(np.finfo(np.float32).max)
FLOATS = st.floats(-MAX / 2, MAX / 2, width=32)


def theirs(embeddings: np.ndarray, precision: str, ranges: Ranges | None) -> np.ndarray:
    from sentence_transformers.util import quantize_embeddings

    if precision == "float16":  # not in sentence-transformers
        return embeddings.astype(np.float16)
    both = np.stack([ranges.minimum, ranges.maximum]) if ranges else None
    with np.errstate(over="ignore"):
        return np.asarray(quantize_embeddings(embeddings, precision, ranges=both))  # pyright: ignore[reportArgumentType]


def check_same(embeddings: np.ndarray, ranges: Ranges) -> None:
    for precision in PRECISIONS:
        if not finite_rows(embeddings, precision).all():
            continue
        found, expected = quantize(embeddings, precision, ranges), theirs(embeddings, precision, ranges)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes(), precision
        assert (found.dtype, found.shape[1]) == vector_layout(precision, embeddings.shape[1])


@pytest.mark.torch
@pytest.mark.parametrize("dim", [1, 7, 8, 20, 64])
@pytest.mark.parametrize("scale", [1, 1e-38, 1e-42, 3e4, 1e37])
def test_equals_sentence_transformers(dim, scale):
    """Also with a constant dimension, and far outside of the ranges."""
    rng = np.random.default_rng(dim)
    embeddings = (rng.standard_normal((200, dim)) * scale).astype(np.float32)
    embeddings[:, 0] = scale
    embeddings[0, :3] = [0, -0.0, 1e-30][: min(3, dim)]
    check_same(embeddings, Ranges.of(embeddings))
    check_same(embeddings, Ranges.of(embeddings[:5]))
    check_same(embeddings * np.float32(3), Ranges.of(embeddings[10:12]))


@pytest.mark.torch
@given(arrays.arrays(np.float32, (4, 3), elements=FLOATS), arrays.arrays(np.float32, (2, 3), elements=FLOATS))
def test_equals_sentence_transformers_for_any_numbers_and_ranges(embeddings, ranges):
    check_same(embeddings, Ranges(ranges.min(axis=0), ranges.max(axis=0)))


@pytest.mark.torch
@pytest.mark.parametrize("precision", SCALAR)
def test_dequantize_equals_sentence_transformers(precision):
    from sentence_transformers.util import quantization

    embeddings = np.random.default_rng(0).standard_normal((120, 9), dtype=np.float32)
    embeddings[:, 2] = 0.25
    ranges = Ranges.of(embeddings)
    both = np.stack([ranges.minimum, ranges.maximum])
    np.testing.assert_array_equal(both, quantization._get_quantization_ranges(embeddings, precision, None))
    found = quantize(embeddings, precision, ranges)
    np.testing.assert_array_equal(found, quantization.quantize_embeddings(embeddings, precision))
    expected = quantization._dequantize_embeddings(found, precision, both)
    np.testing.assert_array_equal(dequantize(found, precision, 9, ranges), expected.astype(np.float32))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [8, 13])
def test_dequantize(precision, dim):
    embeddings = np.random.default_rng(1).standard_normal((50, dim), dtype=np.float32)
    ranges = Ranges.of(embeddings)
    found = dequantize(quantize(embeddings, precision, ranges), precision, dim, ranges)
    assert (found.dtype, found.shape) == (np.float32, (50, dim))
    if precision in ("binary", "ubinary"):
        np.testing.assert_array_equal(found, np.where(embeddings > 0, 1, -1))
    else:
        error = {"float32": 0, "float16": 2e-3}.get(precision, float(ranges.steps.max()) * 1.001)
        assert np.abs(found - embeddings).max() <= error


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_are_independent(precision):
    embeddings = np.random.default_rng(2).standard_normal((33, 20), dtype=np.float32)
    ranges = Ranges.of(embeddings[:7])
    whole = quantize(embeddings, precision, ranges)
    one_by_one = [quantize(embeddings[i : i + 1], precision, ranges) for i in range(33)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), whole)
    assert quantize(embeddings[:0], precision, ranges).shape == (0, whole.shape[1])


def test_finite_rows():
    rows = np.ones((6, 2), np.float32)
    rows[1:5, 1] = np.nan, -np.inf, 65_519.9, -65_520
    assert finite_rows(rows, "float32").tolist() == [True, False, False, True, True, True]
    assert finite_rows(rows, "int8").tolist() == [True, False, False, True, True, True]
    assert finite_rows(rows, "float16").tolist() == [True, False, False, True, False, True]
    assert np.isfinite(quantize(rows[finite_rows(rows, "float16")], "float16")).all()


@pytest.mark.parametrize(
    ("minimum", "maximum", "named"),
    [
        ([0.0, np.nan], [1.0, 1.0], "dimension 1"),
        ([0.0], [1e39], "dimension 0"),
        ([0.0, 2.0], [1.0, 1.0], "dimension 1"),
        ([-MAX], [MAX], "dimension 0"),
        ([0.0], [1.0, 2.0], "(1,) and (2,)"),
        ([[0.0]], [[1.0]], "(1, 1)"),
    ],
)
def test_invalid_ranges(minimum, maximum, named, refused):
    with refused("ranges", named):
        Ranges(np.array(minimum), np.array(maximum))


@pytest.mark.parametrize("rows", [0, 1])
def test_ranges_of_fewer_than_two_embeddings(rows, refused):
    with refused("ranges", str(rows)):
        Ranges.of(np.ones((rows, 3), np.float32))


def test_ranges_of_infinite_embeddings(refused):
    with refused("dimension 1"):
        Ranges.of(np.array([[1, 2], [1, np.inf]], np.float32))


@pytest.mark.parametrize("ranges", [None, Ranges(np.zeros(3), np.ones(3))])
def test_ranges_of_other_dimensions(ranges, refused):
    with refused("ranges", "int8"):
        quantize(np.ones((4, 2), np.float32), "int8", ranges)
    with refused("ranges", "int8"):
        dequantize(np.ones((4, 2), np.int8), "int8", 2, ranges)


@pytest.mark.parametrize("precision", ["int4", "float64", "fp16", None])
def test_unsupported_precision(precision, refused):
    """numpy knows some of these, and would cut the numbers to them."""
    with refused(repr(precision), *PRECISIONS):
        quantize(np.ones((4, 2), np.float32), precision)
    with refused(repr(precision), *PRECISIONS):
        dequantize(np.ones((4, 2), np.float32), precision, 2)
