"""An embedding job against the encoder alone, its scaling over processes, and the cost of commits.

Each is compared within the same run: the job with the encoder on tokenized texts, several processes with one, and
commits with the time of their parts.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import write_checkpoint
from report import publish, table

from stella_jax import Stella
from stella_jax.devices import start_jax
from stella_jax.job import worker
from stella_jax.job.options import JobOptions
from stella_jax.job.run import run_job

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "corpus_20k.jsonl.gz"


def cut_corpus(path: Path, count: int, folder: Path) -> Path:
    """Writes the first `count` rows of a corpus to a file; a shorter corpus repeats under new ids."""
    with gzip.open(path, "rt", encoding="utf-8") as source:
        texts = [json.loads(line)["text"] for line in islice(source, count)]
    cut = folder / "corpus.jsonl"
    with cut.open("w", encoding="utf-8") as target:
        for number, text in enumerate(islice(cycle(texts), count)):
            target.write(json.dumps({"id": str(number), "text": text}) + "\n")
    return cut


def measure_job(model: Stella, corpus: Path, part_rows: int, repeats: int, folder: Path) -> list[object]:
    """A row of the table: the whole job against the encoder alone, on the same texts in the same groups."""
    options = JobOptions(part_rows=part_rows)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    groups = [model.tokenize(texts[i : i + part_rows]) for i in range(0, len(texts), part_rows)]
    tokens = sum(len(text.ids) for group in groups for text in group)
    alone, whole, share = [], [], 0.0
    for _ in range(repeats + 1):  # the first compiles
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        for _ in model.runner.stream(groups, model.max_seq_length):
            pass
        alone.append(time.perf_counter() - start)
        start = time.perf_counter()
        summary = run_job(model, {"model": "bench", "revision": None}, [corpus], out, options)
        whole.append(time.perf_counter() - start)
        share = summary.tokens / summary.computed_tokens
    alone, whole = (tokens / statistics.median(seconds[1:]) for seconds in (alone, whole))
    return [f"{len(texts)} texts, parts of {part_rows}", tokens, share, alone, whole, whole / alone]


def measure_commit(model: Stella, corpus: Path, part_rows: int, folder: Path) -> list[object]:
    """A row of the table: seconds of a part's commit (files, hashes, fsync), and their share of the job's time."""
    seconds: list[float] = []
    real = worker.commit_part

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        done = real(*arguments)
        seconds.append(time.perf_counter() - start)
        return done

    worker.commit_part = timed
    try:
        options = JobOptions(part_rows=part_rows)
        summary = run_job(model, {"model": "bench", "revision": None}, [corpus], folder / "commit", options)
    finally:
        worker.commit_part = real
    return [f"{len(seconds)} parts of {part_rows}", statistics.median(seconds), sum(seconds) / summary.seconds]


def rates_of_processes(count: int, corpus: Path, folder: Path, model: str, part_rows: int) -> tuple[float, float]:
    """Tokens per second of `count` processes on one job, one core each: over the whole job, and in its steady state.

    The whole job ends with the slowest process, and includes loading some 30 compiled programs. The steady state is
    from when all processes have done a quarter of their share until the first one ends.
    """
    out = folder / f"of-{count}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "stella_jax", "embed", str(corpus), "--out", str(out), "--model", model]
    command += ["--part-rows", str(part_rows), "--executor", "distributed", "--processes", str(count)]
    cores = sorted(os.sched_getaffinity(0))
    processes = [
        subprocess.Popen(["taskset", "-c", str(cores[i % len(cores)]), *command, "--process", str(i)], stdout=-3)
        for i in range(count)
    ]
    if any(process.wait() for process in processes):
        raise SystemExit("a process failed; its error is above.")
    progress = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in (out / "_job").glob("progress*.jsonl")
    ]
    whole = sum(lines[-1]["tokens"] for lines in progress) / max(lines[-1]["seconds"] for lines in progress)
    return whole, sum(_steady_rates([_embedding(lines) for lines in progress]))


def _embedding(lines: list[dict[str, Any]]) -> np.ndarray:
    """(lines, 2) seconds since the epoch and tokens embedded by then, of one process."""
    embedding = [line for line in lines if line["phase"] == "embedding"]
    return np.array([(datetime.fromisoformat(line["time"]).timestamp(), line["tokens"]) for line in embedding])


def _steady_rates(progress: list[np.ndarray]) -> Iterator[float]:
    start = max(times[np.searchsorted(tokens, tokens[-1] / 4)] for times, tokens in (lines.T for lines in progress))
    end = min(lines[-1, 0] for lines in progress)
    for times, tokens in (lines.T for lines in progress):
        first, last = np.interp([start, end], times, tokens)
        yield (last - first) / (end - start)


def measure_scaling(counts: list[int], *arguments: Any, repeats: int) -> list[list[object]]:
    """Rows of the table for one process and for each of `counts`."""
    rates_of_processes(1, *arguments)  # fills the compile cache
    rates = {count: [rates_of_processes(count, *arguments) for _ in range(repeats)] for count in [1, *counts]}
    medians = {count: np.median(found, axis=0) for count, found in rates.items()}
    rows: list[list[object]] = []
    for count, found in medians.items():
        ideal = min(count, len(os.sched_getaffinity(0)))
        whole, steady = (found / medians[1] / ideal).tolist()
        rows.append([count, ideal, float(found[0]), whole, float(found[1]), steady])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="a random 434M checkpoint; written if it does not exist")
    parser.add_argument("--model", help="use another model, such as tiny")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--part-rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=("job", "commit", "scaling"), nargs="+")
    parser.add_argument("--out", type=Path, help="append the tables to this file")
    options = parser.parse_args()
    wanted = options.only or ["job", "commit", "scaling"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        name = options.model or str(write_checkpoint(options.checkpoint or folder / "stella"))
        corpus = cut_corpus(options.corpus, options.texts, folder)
        if "scaling" in wanted:
            arguments = corpus, folder, name, max(1, options.part_rows // 8)
            rows = measure_scaling([2, 4], *arguments, repeats=options.repeats)
            columns = ["processes, a core each", "ideal", "tok/s", "of the ideal", "steady tok/s", "of the ideal"]
            publish(f"job: processes, {options.texts} texts, {Path(name).name}", table(columns, rows), options.out)
        start_jax()
        model = Stella.from_pretrained(name) if {"job", "commit"} & set(wanted) else None
        if model and "job" in wanted:
            row = measure_job(model, corpus, options.part_rows, options.repeats, folder)
            columns = ["job", "useful tokens", "useful share", "encoder alone tok/s", "whole job tok/s", "ratio"]
            publish(f"job: against the encoder alone, {Path(name).name}", table(columns, [row]), options.out)
        if model and "commit" in wanted:
            row = measure_commit(model, corpus, options.part_rows, folder)
            publish(
                f"job: commits, {Path(name).name}",
                table(["job", "s per part", "of the job's time"], [row]),
                options.out,
            )


if __name__ == "__main__":
    main()
