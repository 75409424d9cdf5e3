"""Dropout in the encoder; test_goldens.py and test_oracle.py test it without dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import split_encoder
from flax import nnx
from paths import GOLDENS

from stella_jax.models.layers import Dropout

IDS = np.random.default_rng(0).integers(5, 2048, (2, 12)).astype(np.int32)
LENGTHS = np.array([12, 7], np.int32)


@pytest.fixture(scope="module")
def encode():
    """A function from a dropout to the last hidden state and the states of all layers."""
    graphdef, state = split_encoder(GOLDENS / "stella")

    @jax.jit
    def run(state, dropout):
        return nnx.merge(graphdef, state)(IDS, LENGTHS, dropout)

    return partial(run, state)


def dropout(seed: int, rate: float = 0.1) -> Dropout:
    return Dropout(rate, jax.random.key(seed))


def test_rate_and_mean() -> None:
    x = jnp.full((400, 500), 3.0)
    dropped = np.asarray(dropout(0, 0.3)(x))
    assert np.unique(dropped).tolist() == [0.0, np.float32(3) / np.float32(0.7)]
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.005)
    assert dropped.mean() == pytest.approx(3.0, abs=0.02)


def test_places_draw_independently() -> None:
    x = jnp.ones(10_000)
    drawn = [np.asarray(dropout(0).fold_in(index)(x)) == 0 for index in range(4)]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (one & other).mean() == pytest.approx(0.01, abs=0.005)


def test_same_key_same_dropout(encode) -> None:
    once, again, other = (np.asarray(encode(dropout(seed))[0]) for seed in (0, 0, 1))
    assert (once == again).all() and (once != other).all()


def test_zero_rate_is_no_dropout(encode) -> None:
    np.testing.assert_allclose(encode(dropout(0, 0.0))[0], encode(None)[0], rtol=0, atol=1e-5)


def test_layers_draw_independently() -> None:
    """A stack of equal layers: each one zeroes other numbers."""
    drawn = jax.vmap(dropout(0).fold_in)(jnp.arange(1, 4))
    masks = [np.asarray(Dropout(0.5, drawn.key[i])(jnp.ones(64))) == 0 for i in range(3)]
    assert len({mask.tobytes() for mask in masks}) == 3
