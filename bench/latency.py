"""Latency of a single query in milliseconds: `Stella.encode`, its device alone, and its peers, warm.

    python bench/latency.py [--dtype float32 ...] [--text QUERY] [--repeats N] [--peers NAME ...] [--out FILE]

The device alone is the compiled forward pass with its arrays on the device, until the result is ready. A call should
take at most 1.5 times as long. Ours and the device take turns; the peers follow one by one, as their idle threads would
slow the others.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
from cost import ITEM_BYTES
from inputs import checkpoint, parser_of, size_of
from limits import Limits, measure_limits
from report import publish, table, timings
from systems import PEERS, peers, stella_jax, usual_peers

from stella_jax import Stella
from stella_jax.batching import Packer, pad
from stella_jax.sharding import BATCH_SPEC, shard

QUERY = "What are some ways to reduce stress?"
DEVICE = "stella-jax, device alone"
COLUMNS = ("dtype", "system", "median ms", "95th percentile ms", "stella-jax / system", "of the roofline")
TARGET = 1.5


def device_call(model: Stella, query: str) -> Callable[[], object]:
    """A function that runs the forward pass of a single query and waits for the result."""
    runner, [tokens] = model.runner, model.tokenize([query])
    [batch] = [*(packer := Packer(model.max_seq_length, 1)).add(0, [len(tokens.ids)]), *packer.flush(0)]
    ids, lengths = (
        shard(model.mesh, array, BATCH_SPEC) for array in pad([tokens.ids], batch, model.config.pad_token_id)
    )

    def call() -> object:
        with jax.set_mesh(model.mesh):
            return jax.block_until_ready(runner.forward(ids, lengths))

    return call


def measure(directory: Path, limits: Limits, options: argparse.Namespace) -> tuple[list[list[object]], list[str]]:
    """A row for each system, and a sentence for each system that is left out."""
    model = Stella.from_pretrained(directory, dtype=limits.dtype)
    ours = stella_jax(model).name
    runs = {ours: partial(model.encode, options.text), DEVICE: device_call(model, options.text)}
    seconds = timings(runs, options.repeats)
    others, sentences = peers(directory, limits.dtype, options.peers)
    for system in others:
        seconds |= timings({system.name: partial(system.encode, [options.text], model.max_seq_length)}, options.repeats)
    least = limits.seconds(model.config, [len(model.tokenize([options.text])[0].ids)])
    typical = statistics.median(seconds[ours])
    return [[limits.dtype, name, *_cells(values, typical, least)] for name, values in seconds.items()], sentences


def _cells(seconds: Sequence[float], ours: float, least: float) -> list[object]:
    median = statistics.median(seconds)
    late = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
    return [1000 * median, 1000 * late, ours / median, least / median]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--dtype", nargs="+", choices=list(ITEM_BYTES), default=[_default_dtype()])
    parser.add_argument("--text", default=QUERY)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=usual_peers())
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    with checkpoint(options) as directory:
        config = Stella.from_pretrained(directory).config
        found = [measure(directory, measure_limits(config, dtype), options) for dtype in options.dtype]
        title = f"latency: one query, {size_of(directory)}"
    rows, sentences = ([each for part in parts for each in part] for parts in zip(*found, strict=True))
    notes = [f"Target: a call takes at most {TARGET} times the device alone.", *sentences]
    publish(title, "\n\n".join([table(COLUMNS, rows), *notes]), options.out)


def _default_dtype() -> str:
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


if __name__ == "__main__":
    main()
