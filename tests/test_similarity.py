"""Similarity functions of vectors in every accepted form."""

import numpy as np
import pytest

from stella_jax import similarity


@pytest.mark.parametrize("name", similarity.MATRIX)
def test_lists_single_vectors_and_empty_arrays(name):
    vector = [1.0, 2.0, 2.0]
    assert similarity.similarity(name, vector, [vector, vector]).shape == (1, 2)
    assert similarity.similarity(name, np.zeros((0, 3)), [vector]).shape == (0, 1)
    assert similarity.similarity(name, [vector], np.zeros((0, 3))).shape == (1, 0)
    assert similarity.similarity_pairwise(name, np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)
    assert similarity.similarity_pairwise(name, vector, vector).shape == (1,)


@pytest.mark.parametrize("name", similarity.MATRIX)
def test_vectors_of_unequal_length(name, refused):
    with refused("(2, 3) and (2, 4)"):
        similarity.similarity(name, np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize("name", similarity.MATRIX)
def test_pairs_of_unequal_number(name, refused):
    with refused("(2, 3) and (3, 3)"):
        similarity.similarity_pairwise(name, np.zeros((2, 3)), np.zeros((3, 3)))
