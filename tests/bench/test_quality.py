import numpy as np
import pytest

from bench.quality import agreement, nearest


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)


def test_nearest_excludes_the_text_itself() -> None:
    places = nearest(np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32), 2)
    assert places.tolist() == [[1, 2], [0, 2], [1, 0]]


def test_scaled_vectors_agree(vectors) -> None:
    assert agreement(vectors, 3 * vectors) == pytest.approx([1, 1, 1, 1, 1])


def test_one_wrong_vector_is_detected(vectors) -> None:
    other = vectors.copy()
    other[7] = -other[7]
    least, low, median, shared, same = agreement(vectors, other)
    assert (least, median) == pytest.approx((-1, 1))
    assert low < 1 and 0.5 < shared < 1 and same < 1
