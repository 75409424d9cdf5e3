"""The nearest rows are exact and equal ones keep their order, for any blocks."""

import numpy as np
import pytest

from stella_jax import nearest as module
from stella_jax.nearest import nearest


def expected(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    products = queries.astype(np.float64) @ corpus.astype(np.float64).T
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, order, axis=1), order


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (7, 3), (100, 100), (1000, 5), (5000, 40), (5000, 1)])
def test_equals_a_sort(monkeypatch, rows: int, k: int) -> None:
    """In blocks of queries and rows; the last ones are not full."""
    monkeypatch.setattr(module, "MAX_BLOCK_ROWS", 2048)
    monkeypatch.setattr(module, "MAX_QUERIES", 16)
    rng = np.random.default_rng(0)
    queries, corpus = (rng.standard_normal((n, 24)).astype(np.float32) for n in (37, rows))
    scores, numbers = nearest(queries, corpus, k)
    products, order = expected(queries, corpus, k)
    np.testing.assert_array_equal(numbers, order)
    np.testing.assert_allclose(scores, products, atol=1e-5)


def test_equal_rows_keep_their_order(monkeypatch) -> None:
    """With products that are whole numbers, mostly equal, over several blocks and groups."""
    monkeypatch.setattr(module, "MAX_BLOCK_ROWS", 1024)
    rng = np.random.default_rng(1)
    queries, corpus = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (50, 3000))
    scores, numbers = nearest(queries, corpus, 20)
    products, order = expected(queries, corpus, 20)
    np.testing.assert_array_equal(numbers, order)
    np.testing.assert_array_equal(scores, products)


def test_fewer_rows_than_k() -> None:
    """Padding rows of a block are never found."""
    queries, corpus = np.ones((2, 3), np.float32), -np.ones((5, 3), np.float32)
    scores, numbers = nearest(queries, corpus, 8)
    np.testing.assert_array_equal(numbers, [[0, 1, 2, 3, 4, -1, -1, -1]] * 2)
    np.testing.assert_array_equal(scores, [[-3.0] * 5 + [-np.inf] * 3] * 2)


def test_empty_queries_and_empty_corpus() -> None:
    for queries, rows in ((0, 5), (2, 0)):
        scores, numbers = nearest(np.ones((queries, 3), np.float32), np.ones((rows, 3), np.float32), 4)
        assert scores.shape == numbers.shape == (queries, 4)


def test_on_block_counts_products(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_BLOCK_ROWS", 64)
    monkeypatch.setattr(module, "MAX_QUERIES", 16)
    counts: list[int] = []
    nearest(np.ones((20, 3), np.float32), np.ones((150, 3), np.float32), 4, counts.append)
    assert sum(counts) == 20 * 150
