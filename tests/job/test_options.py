"""Loading a model in a thread, and defaults that follow from the model."""

import subprocess
import sys

import pytest

from stella_jax import Stella
from stella_jax.job.options import JobOptions

ENDS_EARLY = """
import time
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.job.options import ModelOptions

load_model = Checkpoint.load_model

def load_slowly(*args, **options):
    time.sleep(0.3)
    return load_model(*args, **options)

Checkpoint.load_model = load_slowly
ModelOptions(dim=32).load()
"""


def test_a_process_that_ends_while_weights_load():
    process = subprocess.run([sys.executable, "-c", ENDS_EARLY], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize(("platform", "rows"), [("cpu", 2048), ("tpu", 65_536)])
def test_rows_of_a_part_follow_from_the_platform_of_the_model(tiny: Stella, monkeypatch, platform, rows):
    monkeypatch.setattr(tiny, "platform", platform)
    assert JobOptions().fingerprint(tiny)["part_rows"] == rows
