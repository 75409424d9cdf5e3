"""MtebEncoder where mteb is not installed."""

import pytest

from stella_jax import Stella
from stella_jax.mteb import MtebEncoder


def test_without_mteb(tiny: Stella, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setattr("stella_jax.mteb.import_module", lambda name: __import__("no_such_module"))
    with refused("stella-jax[mteb]"):
        _ = MtebEncoder(tiny).mteb_model_meta
