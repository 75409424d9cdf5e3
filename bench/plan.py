"""Plans a job of 1e9 rows in 1e5 parts over simulated inputs; prints parts, seconds, and peak memory in GiB."""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from stella_jax.job.duplicates import Duplicates
from stella_jax.job.plan import plan_parts
from stella_jax.job.plan_files import PlanFiles, write_plan
from stella_jax.job.receipts import missing
from stella_jax.job.scanner import PART
from stella_jax.job.store import open_store

INPUTS, RECORDS, PART_ROWS = 100, 10_000_000, 10_000


def plan_job(folder: Path) -> int:
    """Cuts the parts, writes the plan's files, reads them back and asks which parts are missing: how many."""
    store = open_store(folder)
    store.prepare("plan", "receipts")
    duplicates = Duplicates(store.scratch)
    duplicates.find()
    parts = plan_parts([RECORDS] * INPUTS, PART_ROWS)
    PlanFiles(store, write_plan(store, parts, np.zeros(len(parts), PART), duplicates))
    duplicates.close()
    return len(missing(store, parts))


if __name__ == "__main__":
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        parts = plan_job(Path(scratch))
    print(parts, time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
