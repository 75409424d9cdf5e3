"""torch as the benchmarks set it up: ours in all but the way there."""

from pathlib import Path

import numpy as np
import pytest

from bench.checkpoint import SMALL, write_checkpoint
from bench.on_torch import torch_encoder
from stella_jax import Stella

TEXTS = [f"{'tea ' * (i % 40)}{i}" for i in range(50)]


@pytest.mark.nightly  # it compiles
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # theirs
def test_same_vectors_compiled_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr("bench.on_torch.BATCH_TOKENS", 100)
    directory = write_checkpoint(tmp_path / "small", SMALL)
    model = Stella.from_pretrained(directory)
    model.max_seq_length = 24
    ours = model.encode(TEXTS)
    for compiled in (False, True):
        theirs = torch_encoder(directory, "float32", "cpu", "sdpa", compiled)(TEXTS, 24)
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
        assert bool(counters["stats"]["calls_captured"]) == compiled
