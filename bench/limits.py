"""The machine's peak matmul rate and memory bandwidth, and the encoder's roofline in tokens per second.

    python bench/limits.py [--checkpoint DIR] [--dtype float32 bfloat16] [--out FILE]

The matmul rate is measured on a layer's four jitted matmuls with 256 to 131,072 tokens, the best of JAX and, on a CPU,
torch if installed. The bandwidth is the best of a triad and a sum over arrays larger than any cache. The roofline is
the smaller rate of the encoder's FLOPs at the first and its minimum traffic at the second. Each is the best of a few
runs; other work on the machine lowers it.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import jax
import jax.numpy as jnp
from cost import ITEM_BYTES, batch_bytes
from inputs import checkpoint, corpus_texts, parser_of, size_of
from report import publish, table

from stella_jax.batching import rows_of
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.flops import linear_flops, products, text_flops
from stella_jax.runner import DEFAULT_TOKEN_BUDGET, TOKEN_BUDGET

LENGTHS = (128, 512, 2048, 8192)
TOKENS = {"cpu": (256, 1024, 2048)}  # of the measured matmuls
ACCELERATOR_TOKENS = (65_536, 131_072)  # enough to make the launch overhead negligible
STREAM_BYTES = {"cpu": 2**28}  # of each of three arrays
ACCELERATOR_STREAM_BYTES = 2**31
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """A machine's peak rates.

    Attributes:
      dtype: of matmuls and weights.
      matmul: FLOPs per second of a layer's matmuls.
      bandwidth: bytes per second from and to memory.
    """

    dtype: str
    matmul: float
    bandwidth: float

    def compute_seconds(self, config: EncoderConfig, lengths: Sequence[int]) -> float:
        """Seconds of the FLOPs of texts with these token counts."""
        return sum(text_flops(config, length) for length in lengths) / self.matmul

    def traffic_seconds(self, config: EncoderConfig, lengths: Sequence[int]) -> float:
        """Seconds of the memory traffic of these texts as one batch."""
        return batch_bytes(config, lengths, self.dtype) / self.bandwidth

    def seconds(self, config: EncoderConfig, lengths: Sequence[int]) -> float:
        """The roofline: minimum seconds for these texts as one batch without padding."""
        return max(self.compute_seconds(config, lengths), self.traffic_seconds(config, lengths))


def measure_limits(config: EncoderConfig, dtype: str) -> Limits:
    """Measures this machine; takes some ten seconds on two cores."""
    return Limits(dtype, max(rate for _, _, rate in matmul_rates(config, dtype)), max(bandwidths().values()))


def matmul_rates(config: EncoderConfig, dtype: str) -> Iterator[tuple[str, int, float]]:
    """Yields (library, tokens, FLOPs per second) of a layer's matmuls."""
    on_cpu = jax.default_backend() == "cpu"
    makers = {"jax": _jax_product} | ({"torch": _torch_product} if on_cpu and find_spec("torch") else {})
    flops = linear_flops(config) / config.num_hidden_layers
    for tokens in TOKENS.get(jax.default_backend(), ACCELERATOR_TOKENS):
        for library, product in makers.items():
            seconds = sum(best(product(tokens, *sizes, dtype)) for sizes in products(config))
            yield library, tokens, tokens * flops / seconds


def _jax_product(tokens: int, rows: int, columns: int, dtype: str) -> Callable[[], object]:
    x, weights = jnp.ones((tokens, rows), dtype), jnp.ones((rows, columns), dtype)
    # As in the encoder: full float32 precision, and float32 results on CPU.
    result = jnp.float32 if jax.default_backend() == "cpu" else dtype
    precision = "highest" if dtype == "float32" else "default"
    product = jax.jit(lambda x, y: jnp.dot(x, y, precision=precision, preferred_element_type=result))
    return lambda: product(x, weights).block_until_ready()


def _torch_product(tokens: int, rows: int, columns: int, dtype: str) -> Callable[[], object]:
    import torch

    torch_dtype = getattr(torch, dtype)
    x, weights = torch.ones(tokens, rows, dtype=torch_dtype), torch.ones(columns, rows, dtype=torch_dtype)
    return lambda: torch.nn.functional.linear(x, weights)


def bandwidths() -> dict[str, float]:
    """Memory bandwidth in bytes per second: of z = x + 2 y into an existing array, and of a sum, in float32."""
    size = STREAM_BYTES.get(jax.default_backend(), ACCELERATOR_STREAM_BYTES)
    x, y, z = (jnp.ones(size // 4, jnp.float32) for _ in range(3))
    # Reuses z's memory: page faults of new memory cost several times more than the writes.
    triad = jax.jit(lambda z, x, y: x + 2 * y, donate_argnums=0, keep_unused=True)
    add = jax.jit(jnp.sum)

    def again() -> None:
        nonlocal z
        z = triad(z, x, y).block_until_ready()

    return {"triad": 3 * size / best(again), "sum": size / best(lambda: add(x).block_until_ready())}


def tokenizer_rate(model: Checkpoint, texts: Sequence[str]) -> float:
    """Tokens per second of the host's tokenizer."""
    tokenizer = model.tokenizer()
    tokens = sum(len(text.ids) for text in tokenizer.encode(texts))
    return tokens / best(lambda: tokenizer.encode(texts), 2)


def best(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """The minimum seconds of a few runs, after one that compiles."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def roofline(config: EncoderConfig, limits: Limits, lengths: Sequence[int]) -> list[list[object]]:
    """A row for each length: FLOPs per token, and tokens per second by compute, by traffic, and by both."""
    budget = TOKEN_BUDGET.get(jax.default_backend(), DEFAULT_TOKEN_BUDGET)
    rows: list[list[object]] = []
    for length in lengths:
        batch = [length] * rows_of(length, budget)
        compute, traffic, both = (
            sum(batch) / seconds(config, batch)
            for seconds in (limits.compute_seconds, limits.traffic_seconds, limits.seconds)
        )
        gflop = text_flops(config, length) / length / 1e9
        rows.append([limits.dtype, f"{len(batch)} x {length}", f"{gflop:.4f}", compute, traffic, both])
    return rows


ROOFLINE = ("dtype", "rows x tokens", "GFLOP/token", "tok/s by compute", "tok/s by traffic", "roofline tok/s")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--dtype", nargs="+", choices=list(ITEM_BYTES), default=list(ITEM_BYTES))
    parser.add_argument("--length", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--texts", type=int, default=20_000, help="texts for the tokenizer")
    options = parser.parse_args()
    with checkpoint(options) as directory:
        measure(Checkpoint.open(directory), size_of(directory), options)


def measure(model: Checkpoint, size: str, options: argparse.Namespace) -> None:
    """Measures and publishes both tables."""
    config = model.spec.config
    streams = bandwidths()
    rates = [(dtype, *rate) for dtype in options.dtype for rate in matmul_rates(config, dtype)]
    machine: list[list[object]] = [
        [f"matmuls of a layer, {dtype}, {library}, {tokens} tokens", rate / 1e9, "GFLOP/s"]
        for dtype, library, tokens, rate in rates
    ]
    machine += [[f"memory, {name}", rate / 1e9, "GB/s"] for name, rate in streams.items()]
    rate = tokenizer_rate(model, corpus_texts(options.corpus, options.texts))
    machine.append([f"tokenizer, {options.texts} texts", rate, "tok/s"])
    publish(f"limits: machine, matmuls of {size}", table(["measurement", "rate", "unit"], machine), options.out)
    rows = []
    for dtype in options.dtype:
        limits = Limits(dtype, max(rate for of, _, _, rate in rates if of == dtype), max(streams.values()))
        rows += roofline(config, limits, options.length)
    publish(f"limits: roofline of {size}", table(ROOFLINE, rows), options.out)


if __name__ == "__main__":
    main()
