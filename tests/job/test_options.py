"""Loading a model in a thread."""

import subprocess
import sys

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
