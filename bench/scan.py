"""The scan of a job's inputs by several processes, and their hashes by several threads on a rerun, against one.

Each measurement is a process of its own, whose start-up is not counted; that of the processes it starts is.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.job import crew, hashing, scan
from stella_jax.job.hashing import identify_all
from stella_jax.job.rows import Fields
from stella_jax.job.source import open_sources

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "corpus_20k.jsonl.gz"
KINDS = ("jsonl", "jsonl.gz", "csv", "parquet")
PART_ROWS = 65_536


def rows_of(corpus: Path, first: int, count: int) -> Iterator[dict[str, str]]:
    """So many rows of a corpus, over and over, with ids of their own."""
    with gzip.open(corpus) as file:
        texts = [json.loads(line)["text"] for line in file]
    for number in range(first, first + count):
        yield {"id": f"row-{number}", "text": texts[number % len(texts)]}


def write(path: Path, rows: Iterator[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        quoted = (",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows)
        path.write_text("id,text\n" + "\n".join(quoted))
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data, 6) if path.suffix == ".gz" else data)


def peak(process: int | str = "self") -> float:
    """MiB that a process has held at most; getrusage would count what its parent held when it was started."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def measure(work: str, count: int, paths: list[str]) -> None:
    """Prints what `measured` returns."""
    scan.cpu_count = hashing.cpu_count = lambda: count
    scan.BYTES_A_PROCESS = 1  # as many processes as were asked for, whether it pays or not
    pids: list[int] = []
    peaks = [0.0]

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen(*arguments, **options)
        pids.append(process.pid)
        return process

    def tick(rows: int) -> None:
        peaks.append(max([peaks.pop(), *map(peak, pids)]))

    setattr(crew, "Popen", popen)  # noqa: B010  not with a type of its own
    sources, rows = open_sources(paths, Fields()), 0
    begin, used = time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as scratch:
        if work == "scan":
            with scan.scan_sources(sources, Fields(), PART_ROWS, Path(scratch), tick) as found:
                rows = sum(scanned.rows for scanned in found.inputs)
        else:
            identify_all([source.location for source in sources], tick)
    seconds, used = time.perf_counter() - begin, cpu_seconds() - used
    if work == "scan" and len(pids) != (count if count > 1 else 0):
        raise SystemExit(f"{len(pids)} processes were started, not {count}.")
    print(rows, sum(Path(path).stat().st_size for path in paths), seconds, used, peak(), *peaks)


def cpu_seconds() -> float:
    """Of this process and those of its own that have ended."""
    return sum(os.times()[:4])


def measured(work: str, count: int, paths: list[Path]) -> list[float]:
    """Rows, bytes, seconds, CPU seconds of one scan or hash; MiB of its process, and of the largest that it started."""
    command = [sys.executable, __file__, "--measure", work, str(count), *map(str, paths)]
    return [float(value) for value in subprocess.run(command, check=True, capture_output=True).stdout.split()]


def compare(work: str, counts: list[int], kind: str, paths: list[Path], repeats: int) -> list[list[object]]:
    """Rows of the table, of which the first is one process; they take turns."""
    runs = [[measured(work, count, paths) for count in counts] for _ in range(repeats)]
    medians = [[statistics.median(values) for values in zip(*found, strict=True)] for found in zip(*runs, strict=True)]
    cells: list[list[object]] = []
    for count, (rows, size, seconds, used, own, other) in zip(counts, medians, strict=True):
        cell: list[object] = [kind, count, size / seconds / 1e6, medians[0][2] / seconds, own]
        cells.append([*cell, rows / seconds, used / rows * 1e6, other] if work == "scan" else cell)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--rows", type=int, default=400_000, help="of each kind of file")
    parser.add_argument("--files", type=int, default=8, help="that hold them")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--processes", type=int, nargs="+", default=[2], help="besides one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the tables to this file")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        work, count, *paths = options.measure
        measure(work, int(count), paths)
        return
    from report import publish, table  # here: it imports JAX, which is none of the memory measured

    counts, each = [1, *options.processes], options.rows // options.files
    scans, hashes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            paths = [Path(folder) / f"{i}.{kind}" for i in range(options.files)]
            for i, path in enumerate(paths):
                write(path, rows_of(options.corpus, i * each, each))
            scans += compare("scan", counts, kind, paths, options.repeats)
            hashes += compare("hash", counts, kind, paths, options.repeats)
            for path in paths:
                path.unlink()
    what = f"{options.files} files of {each} rows, {len(os.sched_getaffinity(0))} cores"
    columns = ["inputs", "processes", "MB/s", "against one", "peak MiB", "rows/s", "us of CPU a row", "MiB of another"]
    publish(f"scan: a job's inputs, {what}", table(columns, scans), options.out)
    columns = ["inputs", "threads", "MB/s", "against one", "peak MiB"]
    publish(f"scan: hashes of the inputs on a rerun, {what}", table(columns, hashes), options.out)


if __name__ == "__main__":
    main()
