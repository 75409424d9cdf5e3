"""Tokens per second of `Stella.encode`, its peers, and the machine's roofline, by the length of the texts.

    python bench/encode.py [--model stella|qwen2] [--layers N] [--dtype float32 bfloat16] [--length 128 512 2048 8192]
                           [--peers NAME ...] [--out FILE]

All systems have the same random weights of a published size, texts and cores, and take turns in one run. Only useful
tokens count, not padding. Compilation and warm-up are excluded. The roofline comes from limits.py, measured in this
run, for all texts of a workload as one batch without padding. The peers need the extras `test` and `bench` on Python
3.11; missing ones are left out. They run 32 sorted texts at a time, as sentence-transformers does; on an accelerator
torch also runs 65,536 tokens at a time: eager, compiled, and with flash attention without padding.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from cost import ITEM_BYTES
from inputs import checkpoint, corpus_texts, long_texts, parser_of, size_of
from limits import LENGTHS, Limits, measure_limits
from report import interleaved, publish, table
from systems import PEERS, System, peers, stella_jax, usual_peers

from stella_jax import Stella
from stella_jax.batching import Packer

# Of all texts of one length; an accelerator needs many batches of 16,384 tokens.
WORKLOAD_TOKENS = {"cpu": 2048}
ACCELERATOR_WORKLOAD_TOKENS = 2**18
MIXED_TEXTS = {"cpu": 96}
ACCELERATOR_MIXED_TEXTS = 20_000

SOURCE_TEXTS = 2000  # from which long texts are made
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.95}  # with our vectors; less means another model
COLUMNS = (
    "dtype",
    "workload",
    "useful tokens",
    "system",
    "useful share",
    "tok/s",
    "of the roofline",
    "stella-jax speedup",
)
ROOFLINE = "roofline"


class Workload(NamedTuple):
    """Texts, and the number of tokens at which they are truncated."""

    name: str
    texts: list[str]
    length: int


def workloads(texts: list[str], lengths: Sequence[int], mixed: int, longest: int) -> list[Workload]:
    """A workload of texts for each length, and one with the first texts of the corpus."""
    tokens = WORKLOAD_TOKENS.get(jax.default_backend(), ACCELERATOR_WORKLOAD_TOKENS)
    counts = {length: max(1, tokens // length) for length in lengths}
    fixed = [
        Workload(f"{count} x {length} tokens", long_texts(texts, count, length), length)
        for length, count in counts.items()
    ]
    return [*fixed, Workload(f"mixed, {mixed} texts", texts[:mixed], longest)] if mixed else fixed


def computed_by_us(model: Stella, counts: Sequence[int]) -> int:
    """Tokens that our device computes, padding included, for texts of these token counts."""
    packer = Packer(model.max_seq_length, model.runner.token_budget)
    return sum(batch.rows * batch.length for batch in [*packer.add(0, counts), *packer.flush(0)])


def measure(
    directory: Path, work: list[Workload], limits: Limits, options: argparse.Namespace
) -> tuple[list[list[object]], list[str]]:
    """A row for each workload and system, and a sentence for each system that is left out."""
    model = Stella.from_pretrained(directory, dtype=limits.dtype)
    others, sentences = peers(directory, limits.dtype, options.peers)
    rows: list[list[object]] = []
    for workload in work:
        too_large = {system.name: system.too_large(len(workload.texts), workload.length) for system in others}
        systems = [stella_jax(model), *(system for system in others if not too_large[system.name])]
        sentences += filter(None, too_large.values())
        rows += (found := _measured(model, systems, workload, limits, options.repeats))
        for row in found:
            print(*row, flush=True)
    return rows, sentences


def _measured(
    model: Stella, systems: list[System], workload: Workload, limits: Limits, repeats: int
) -> list[list[object]]:
    """The rows of a workload, ours first and the roofline last."""
    results: dict[str, np.ndarray] = {}

    def run(system: System) -> None:
        results[system.name] = system.encode(workload.texts, workload.length)

    seconds = interleaved({system.name: partial(run, system) for system in systems}, repeats)
    check_same(results, MIN_COSINE[limits.dtype])
    counts = [len(text.ids) for text in model.tokenize(workload.texts)]
    computed = {system.name: system.computed(workload.texts, counts, workload.length) for system in systems}
    computed |= {systems[0].name: computed_by_us(model, counts), ROOFLINE: sum(counts)}
    least = limits.seconds(model.config, counts)
    ours, tokens = seconds[systems[0].name], sum(counts)
    return [
        [limits.dtype, workload.name, tokens, name, tokens / computed[name], tokens / took, least / took, took / ours]
        for name, took in [*seconds.items(), (ROOFLINE, least)]
    ]


def check_same(results: dict[str, np.ndarray], least: float) -> None:
    """Compares the vectors of all systems with the first one's.

    Raises:
      SystemExit: a cosine is below `least`, so the system computes another function.
    """
    ours, *_ = results.values()
    for name, theirs in results.items():
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosines = np.sum(ours * theirs, axis=1, dtype=np.float64) / norms
        if not cosines.min() >= least:
            raise SystemExit(
                f"{name}: vectors differ from ours: cosine {cosines.min():.5f}, expected at least {least}."
            )


def main() -> None:
    platform = jax.default_backend()
    parser = parser_of(__doc__)
    parser.add_argument("--dtype", nargs="+", choices=list(ITEM_BYTES), default=list(ITEM_BYTES))
    parser.add_argument("--length", nargs="*", type=int, default=LENGTHS, help="tokens of a text, one workload each")
    parser.add_argument(
        "--texts", type=int, default=MIXED_TEXTS.get(platform, ACCELERATOR_MIXED_TEXTS), help="of the mixed workload"
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=usual_peers())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    texts = corpus_texts(options.corpus, max(options.texts, SOURCE_TEXTS))
    with checkpoint(options) as directory:
        model = Stella.from_pretrained(directory)
        work = workloads(texts, options.length, options.texts, model.max_seq_length)
        limits = [measure_limits(model.config, dtype) for dtype in options.dtype]
        del model
        found = [measure(directory, work, each, options) for each in limits]
        title = f"encode: stella-jax, its peers and the roofline, {size_of(directory)}"
    rows = [row for each, _ in found for row in each]
    sentences = dict.fromkeys(sentence for _, each in found for sentence in each)
    publish(title, "\n\n".join([table(COLUMNS, rows), *sentences]), options.out)


if __name__ == "__main__":
    main()
