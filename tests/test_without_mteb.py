"""MtebEncoder where mteb is not installed: only `mteb_model_meta` needs it."""

from typing import Any

import numpy as np
import pytest

from stella_jax import Stella
from stella_jax.mteb import MtebEncoder

TEXTS = ["green tea", "owl"]


class Metadata:
    name, type = "Own", "Clustering"


def encode(encoder: MtebEncoder) -> np.ndarray:
    options: dict[str, Any] = {"hf_split": "test", "hf_subset": "default"}
    return encoder.encode([{"text": TEXTS}], task_metadata=Metadata(), **options)


def test_without_mteb(tiny: Stella, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setattr("stella_jax.mteb.import_module", lambda name: __import__("no_such_module"))
    with refused("stella-jax[mteb]"):
        _ = MtebEncoder(tiny).mteb_model_meta


def test_device_is_the_platform_that_the_model_runs_on_anyway(refused) -> None:
    model = Stella.from_pretrained("tiny", dim=32)
    found = encode(MtebEncoder("tiny", device=model.platform, dim=32))
    np.testing.assert_array_equal(found, model.encode(TEXTS, "s2s_query"))
    with refused("device 'tpu'"):
        MtebEncoder("tiny", device="tpu")


def test_a_local_checkpoint_has_no_revision(refused) -> None:
    """test_hub.py has one with revisions."""
    with refused("tiny: ", "revision 'main'"):
        MtebEncoder("tiny", "main")
