"""Host throughput of an embedding job with a free encoder, against the bare tokenizer, on one core and on two.

    python bench/host.py [--rows N] [--repeats N] [--out FILE]

The job reads, checks, tokenizes, pads, compresses, writes and commits; its encoder returns precomputed random vectors.
A job of a few rows runs before it, as the first one imports what pyarrow and fsspec import when they are first used.
The peer is `tokenizers`' encode_batch_fast on the same texts in the same run. Each run is a process of its own, pinned
to its cores.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Put this folder last on the path: its scripts have the names of packages.
sys.path.append(sys.path.pop(0))

import numpy as np
from inputs import CORPUS, corpus_texts
from report import publish, table
from tokenizers import Tokenizer

from stella_jax import Stella
from stella_jax.checkpoint.hub import TINY
from stella_jax.devices import start_jax
from stella_jax.job import chunks, worker
from stella_jax.job.options import JobOptions
from stella_jax.job.run import run_job
from stella_jax.runner import DEFAULT_TOKEN_BUDGET

MAX_LENGTH = 512
WARM_UP_ROWS = 600


def write_corpus(path: Path, rows: int, texts_each: int) -> None:
    """Writes rows of `texts_each` joined texts of the corpus, which repeats from its start."""
    texts = itertools.cycle(corpus_texts(CORPUS, 20_000))
    with path.open("w") as file:
        for number in range(rows):
            text = " ".join(itertools.islice(texts, texts_each))
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")


def seconds_of(work: Any) -> tuple[float, float]:
    """Wall seconds and CPU seconds of a call."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - start_cpu


def bare_tokenizer(corpus: Path) -> tuple[float, float, float]:
    """Useful tokens, wall seconds and CPU seconds of the tokenizer alone."""
    texts = [json.loads(line)["text"] for line in corpus.open()]
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    lengths: list[int] = []

    def tokenize() -> None:
        for i in range(0, len(texts), chunks.CHUNK_ROWS):
            encodings = tokenizer.encode_batch_fast(texts[i : i + chunks.CHUNK_ROWS])
            lengths.extend(len(encoding.ids) for encoding in encodings)

    seconds, cpu = seconds_of(tokenize)
    return sum(lengths), seconds, cpu


def host_of_job(corpus: Path, out: Path, dim: int) -> tuple[float, float, float]:
    """Useful tokens, wall seconds and CPU seconds of a job with a free encoder."""
    start_jax()
    model = Stella.from_pretrained("tiny")
    model.max_seq_length = MAX_LENGTH
    runner = model.runner
    vectors = np.random.default_rng(0).standard_normal((4096, dim), np.float32)
    runner.dims, runner.token_budget = (dim,), DEFAULT_TOKEN_BUDGET  # as on an accelerator
    runner.forward = lambda ids, lengths: (vectors[: len(lengths)],)  # pyright: ignore[reportAttributeAccessIssue]
    worker.OPEN_ROWS = {}

    def embed(input: Path, out: Path) -> int:
        return run_job(model, {"model": "tiny", "revision": None}, [input], out, JobOptions()).tokens

    few = out.with_name("few.jsonl")
    with corpus.open() as lines:
        few.write_text("".join(itertools.islice(lines, WARM_UP_ROWS)))
    embed(few, out.with_name("few"))
    tokens: list[int] = []
    seconds, cpu = seconds_of(lambda: tokens.append(embed(corpus, out)))
    return tokens[0], seconds, cpu


def measured(what: str, cores: Sequence[int], corpus: Path, dim: int, repeats: int) -> np.ndarray:
    """Medians of (tokens, wall seconds, CPU seconds) of `repeats` processes pinned to these cores."""
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, __file__, "--dim", str(dim), "--what", what]
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as out:
            ended = subprocess.run([*command, str(corpus), out], check=True, capture_output=True, text=True)
        runs.append(json.loads(ended.stdout.splitlines()[-1]))
    return np.median(runs, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4_000_000, help="approximate size of a corpus")
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the table to this file")
    parser.add_argument("--what", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what:
        what, corpus, out = options.what
        corpus = Path(corpus)
        found = bare_tokenizer(corpus) if what == "tokenizer" else host_of_job(corpus, Path(out) / "out", options.dim)
        print(json.dumps(found))
        return
    cores = sorted(os.sched_getaffinity(0))
    rows: list[list[object]] = []
    for texts_each in (1, 5):
        count = options.tokens // (93 * texts_each)
        with tempfile.TemporaryDirectory() as scratch:
            corpus = Path(scratch) / "corpus.jsonl"
            write_corpus(corpus, count, texts_each)
            found = {
                what: [measured(what, cores[:n], corpus, options.dim, options.repeats) for n in (1, 2)]
                for what in ("tokenizer", "job")
            }
        rates = {what: alone[0] / alone[2] for what, (alone, _) in found.items()}
        for what, (alone, both) in found.items():
            share = rates[what] / rates["tokenizer"]
            rows.append([f"{alone[0] / count:.0f} tokens a row", what, rates[what], share, alone[1] / both[1]])
    columns = ["corpus", "system", "tokens per CPU second", "of the tokenizer", "speedup of two cores"]
    publish(f"job: host throughput, {options.dim} dimensions", table(columns, rows), options.out)


if __name__ == "__main__":
    main()
