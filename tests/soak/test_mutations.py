"""Mutated checkpoints, in processes with limits: each loads or is refused in one sentence, and soon.

MUTATIONS=2000 pytest -m slow tests/soak/test_mutations.py runs 2000 mutations of each kind, seeds 0 to 1999.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import FEW, KINDS
from paths import GOLDENS

from convert import to_flax
from stella_jax.checkpoint.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("MUTATIONS", "50"))
# WordPiece with heads, Unigram, and byte-level BPE in shards.
SOURCES = ("stella", "arctic-m-v2", "gte-qwen2")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    flax = []
    for name in SOURCES:
        flax.append(tmp_path_factory.mktemp("flax") / name)
        to_flax(Checkpoint.open(GOLDENS / name), name, flax[-1])
    return {"torch": [GOLDENS / name for name in SOURCES], "flax": flax}


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_checkpoints(kind, layouts, tell):
    script = Path(__file__).parents[1] / "mutations.py"
    count = min(COUNT, FEW.get(kind, COUNT))
    command = [sys.executable, str(script), kind, "0", str(count), *map(str, layouts[KINDS[kind][1]])]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    last = process.stdout.splitlines()[-1:]
    assert (process.returncode, process.stderr) == (0, ""), f"{kind}: seed {last} failed"
    tell(f"{kind}: {last[0]}")
