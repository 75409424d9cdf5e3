"""Overhead of a job besides embedding: listing inputs, time to the first batch, bytes read, and closing.

    python bench/planning.py [--inputs N] [--ids N] [--out FILE]

Inputs are simulated: many small files, and a sparse file of 10 GB with rows in its first megabytes only. The time to
the first batch is compared with a corpus of 10 MB in the same run. Bytes are counted as read from the input.
"""

import argparse
import hashlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

# Put this folder last on the path: its scripts have the names of packages.
sys.path.append(sys.path.pop(0))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from inputs import CORPUS, corpus_texts
from report import publish, table

from stella_jax import Stella
from stella_jax.devices import start_jax
from stella_jax.job import close, worker
from stella_jax.job.commits import Commit, PartName, write_commit
from stella_jax.job.job import JOB_FOLDERS, Job
from stella_jax.job.options import JobOptions
from stella_jax.job.run import run_job
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.rows import RowFields
from stella_jax.readers.split_reader import Position
from stella_jax.readers.splits import FileSize, plan_splits
from stella_jax.storage import location
from stella_jax.storage.store import open_store

ORIGIN = {"model": "tiny", "revision": None}
PART_ROWS = 65_536


def listing(count: int, folder: Path) -> list[object]:
    """A row: seconds to plan a job over `count` small files."""
    for i in range(count):
        (folder / f"{i:06}.jsonl").write_text('{"text": "a"}\n')
    start = time.perf_counter()
    files = open_inputs([folder], RowFields())
    splits = plan_splits([FileSize(file.size, file.can_be_cut, 0) for file in files], 2**20)
    return [f"{len(files)} inputs planned ({len(splits)} splits)", time.perf_counter() - start, ""]


def write_rows(path: Path, size: int, sparse: int = 0) -> Path:
    """Writes `size` bytes of rows, then a hole that makes the file as large as `sparse`."""
    texts = corpus_texts(CORPUS, 20_000)
    with path.open("w") as file:
        for i in range(10**9):
            if file.tell() >= size:
                break
            file.write(json.dumps({"id": str(i), "text": texts[i % len(texts)]}) + "\n")
        file.truncate(max(sparse, file.tell()))
    return path


class FirstBatch(BaseException):
    """Ends a job at its first batch."""


def first_batch(model: Stella, corpus: Path, out: Path) -> float:
    """Seconds from the start of a job to its first batch on the device."""

    def stop(*_: Any) -> None:
        raise FirstBatch

    real = worker.Progress.on_batch
    worker.Progress.on_batch = stop  # pyright: ignore[reportAttributeAccessIssue]
    start = time.perf_counter()
    try:
        run_job(model, ORIGIN, [corpus], out, JobOptions())
    except FirstBatch:
        return time.perf_counter() - start
    finally:
        worker.Progress.on_batch = real  # pyright: ignore[reportAttributeAccessIssue]
    raise AssertionError("there was no batch")


class Counted(io.FileIO):
    """A file that counts the bytes read."""

    bytes = 0

    def readinto(self, buffer: Any) -> int:
        found = super().readinto(buffer) or 0
        Counted.bytes += found
        return found


def bytes_read(model: Stella, corpus: Path, out: Path) -> float:
    """Bytes that a run of the job reads of the input / its size."""
    real = location.open_regular
    location.open_regular = lambda path: io.BufferedReader(Counted(path))
    Counted.bytes = 0
    try:
        run_job(model, ORIGIN, [corpus], out, JobOptions(split_bytes=2**18))
    finally:
        location.open_regular = real
    return Counted.bytes / corpus.stat().st_size


def close_ids(count: int, folder: Path) -> tuple[int, float]:
    """Number of parts, and seconds to close a job of `count` distinct ids."""
    store, rng = open_store(folder / "out"), np.random.default_rng(0)
    store.prepare("", *JOB_FOLDERS)
    corpus = folder / "corpus.jsonl"
    parts = -(-count // PART_ROWS)
    with corpus.open("wb") as file:
        file.truncate(parts * PART_ROWS)
    entry = {"name": corpus.name, "size": 0, "version": "", "planned_size": parts * PART_ROWS, "generation": 0}
    fields = {
        "fingerprint": {"dims": [1], "part_rows": PART_ROWS},
        "split_bytes": PART_ROWS,
        "ranges": {},
        "inputs": [entry],
    }
    [file] = open_inputs([corpus], RowFields())
    job = Job(store, fields, (file,), RowFields())
    for split in islice(job.splits, parts):
        hashes = rng.bytes(16 * PART_ROWS)
        columns = {
            "hash": pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), PART_ROWS, [None, pa.py_buffer(hashes)]),
            "input": pa.array(np.zeros(PART_ROWS, np.int32)),
            "number": pa.array(np.arange(PART_ROWS, dtype=np.int64)),
        }
        name = PartName(split.number, 0)
        pq.write_table(pa.table(columns), folder / "out" / name.ids_file, compression="none", use_dictionary=False)
        (folder / "out" / name.file).write_bytes(b"x")
        commit = Commit(
            job.key(split), name, True, Position(), PART_ROWS, 0, 1, hashlib.sha256().hexdigest(), "", "", True, ()
        )
        write_commit(store, commit)
    close.manifest_fields = lambda *_: {}  # the fingerprint is a fake
    start = time.perf_counter()
    assert close.close_job(job, {}, 1.0)
    return parts, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--ids", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the table to this file")
    parser.add_argument("--close", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.close:
        parts, seconds = close_ids(options.ids, options.close)
        print(parts, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "many").mkdir()
        rows = [listing(options.inputs, folder / "many"), *starts(folder, options.repeats)]
        command = [sys.executable, __file__, "--ids", str(options.ids), "--close", scratch]
        parts, seconds, gib = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        rows.append([f"{options.ids:.0e} ids of {parts} parts closed, {float(gib):.2f} GiB", float(seconds), ""])
    publish("job: overhead besides embedding, tiny", table(["task", "s", "ratio"], rows), options.out)


def starts(folder: Path, repeats: int) -> list[list[object]]:
    start_jax()
    model = Stella.from_pretrained("tiny")
    small = write_rows(folder / "small.jsonl", 10**7)
    large = write_rows(folder / "large.jsonl", 10**7, sparse=10**10)
    first_batch(model, small, folder / "warm")  # compiles
    seconds = {corpus: [] for corpus in (small, large)}
    for i in range(repeats):
        for corpus in seconds:
            seconds[corpus].append(first_batch(model, corpus, folder / f"{corpus.stem}-{i}"))
    one, other = (float(np.median(found)) for found in seconds.values())
    corpus = write_rows(folder / "read.jsonl", 2 * 10**6)
    fresh, again = (bytes_read(model, corpus, folder / "read") for _ in range(2))
    return [
        ["first batch, 10 MB", one, ""],
        ["first batch, 10 GB (sparse)", other, other / one],
        ["bytes read / input size, new job", "", fresh],
        ["bytes read / input size, finished job", "", again],
    ]


if __name__ == "__main__":
    main()
