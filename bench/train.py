"""Tokens per second and peak memory of a training step, against sentence-transformers' losses and torch's AdamW.

    python bench/train.py [--checkpoint DIR] [--length N] [--dtype D] [--alone] [--out FILE]   # the triplet loss
    python bench/train.py --loss all --small            # each loss
    python bench/train.py --grad-cache 1024 --mini-batch 64 --small    # a large batch against 64 rows only
    python bench/train.py --lora 8                      # LoRA of rank 8 on all linear layers, against all parameters

Both have random weights of stella's full size, and the same texts, batches and cores: the triplets of a model card, 16
per batch, or texts of a fixed number of tokens. A step is tokenization, forward with dropout, loss, backward, clipping,
AdamW and schedule. Each measurement is a process of its own, and they take turns; compilation is excluded from the rate
and listed separately. Only useful tokens count, not padding. The peer needs the test extra on Python 3.11 (torch).
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Put this folder last on the path: its scripts have the names of packages.
sys.path.append(sys.path.pop(0))

import jax
import jax.numpy as jnp
import numpy as np
from checkpoint import SMALL, STELLA, write_checkpoint
from peer_losses import LOSSES, Compared, cached
from report import publish, table

from stella_jax import load
from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.flops import attention_flops, linear_flops
from stella_jax.lora import with_lora
from stella_jax.models import architecture_of
from stella_jax.models.new import NEW
from train import Batcher, StepConfig, make_step, optimizers
from train.sections import OptimizerSection

COLUMNS = ("anchor", "positive", "negative")
CACHED = "multiple_negatives_ranking"  # the loss of --grad-cache
TRIPLETS = Path(__file__).parent.parent / "examples/porsche_triplets.jsonl"
STEPS = 100  # of the learning rate's schedule
ADAMW = OptimizerSection()
SYSTEMS = {"stella-jax": "ours", "sentence-transformers": "theirs"}

# The texts of each column, and further columns of numbers by name.
Work = tuple[list[list[str]], dict[str, np.ndarray]]
# One step: a batch -> its number of tokens.
Step = Callable[[list[list[str]], dict[str, np.ndarray]], int]
# GiB of the compiled step's arguments, results and temporaries, from XLA's memory analysis.
Compiled = Callable[[], float]


def batches(loss: Compared, batch_size: int, length: int, dim: int) -> list[Work]:
    """Three different batches: the card's triplets, repeated; with a length, texts that are longer than it."""
    rng = np.random.default_rng(0)
    shape = [] if loss.numbers == 0 else [dim if loss.numbers < 0 else loss.numbers]
    rows = [json.loads(line) for line in TRIPLETS.read_text().splitlines()]
    columns = [[" ".join([row[column]] * (length or 1)) for row in rows] for column in COLUMNS[: loss.texts]]
    starts = range(0, 3 * batch_size, batch_size)
    texts = [[[column[i % len(rows)] for i in range(s, s + batch_size)] for column in columns] for s in starts]
    numbers = [rng.standard_normal((batch_size, *shape), np.float32) for _ in starts]
    return [(each, {loss.further: more} if loss.further else {}) for each, more in zip(texts, numbers, strict=True)]


def ours(directory: Path, options: argparse.Namespace, work: list[Work]) -> tuple[Step, Compiled]:
    model = load(directory, dtype=options.dtype)
    if options.rank:
        model = with_lora(model, options.rank, 2 * options.rank)
    config = StepConfig(dropout=not options.no_dropout, remat=options.remat)
    trained = {name: model.params()[name] for name in model.trainable}
    optimizer = optimizers.from_recipe(ADAMW, trained, STEPS, architecture_of(model.encoder.config)).transformation
    compared = LOSSES[options.loss]
    guide = load(directory, dtype=options.dtype) if compared.guided else None
    state, train_step = make_step(model, compared.ours, optimizer, config, guide=guide)
    micro_batches = -(-options.batch_size // options.mini_batch) if options.mini_batch else 1
    batcher = Batcher.for_model(
        model, options.batch_size, max_length=options.length or None, micro_batches=micro_batches
    )
    batcher.fit([texts for texts, _ in work], all_seen=True)
    del model, trained

    def step(texts: list[list[str]], numbers: dict[str, np.ndarray]) -> int:
        nonlocal state
        batch = batcher(texts, numbers)
        state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))
        return batch.tokens

    def compiled() -> float:
        found = train_step.lower(state, batcher(*work[0])).compile().memory_analysis()
        needed = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        return (needed - found.alias_size_in_bytes) / 2**30

    return step, compiled


def theirs(directory: Path, options: argparse.Namespace, _: list[Work]) -> tuple[Step, Compiled]:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    def loaded() -> SentenceTransformer:
        model = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
        model.max_seq_length = options.length or model.max_seq_length
        return model

    model, compared = loaded().train(not options.no_dropout), LOSSES[options.loss]
    if options.rank:
        adapt(model, options.rank)
    guide = loaded().eval() if compared.guided else None
    mini_batch = options.mini_batch
    loss = cached(losses, model, mini_batch) if mini_batch else compared.theirs(losses, model, guide)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=ADAMW.learning_rate, weight_decay=0.0, fused=True)
    rate = optimizers.schedule(ADAMW.schedule, ADAMW.learning_rate, STEPS, ADAMW.warmup_ratio)
    rates = iter(np.asarray(rate(np.arange(STEPS))).tolist())

    def step(texts: list[list[str]], numbers: dict[str, np.ndarray]) -> int:
        features = [model.preprocess(column) for column in texts]
        loss(features, torch.tensor(next(iter(numbers.values()), []))).backward()
        torch.nn.utils.clip_grad_norm_(trained, ADAMW.max_grad_norm)
        value = next(rates)
        for group in optimizer.param_groups:
            group["lr"] = value
        optimizer.step()
        optimizer.zero_grad()
        return int(sum(each["attention_mask"].sum() for each in features))

    return step, lambda: math.nan


def adapt(model: Any, rank: int) -> None:
    """Adds peft's adapters, and freezes everything else."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(NEW.linears))
    inject_adapter_in_model(config, model[0].auto_model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def measure(system: str, directory: Path, options: argparse.Namespace) -> None:
    """Measures one system in this process and prints the result as JSON."""
    dim = json.loads((directory / "2_Dense_1024/config.json").read_text())["out_features"]
    work = batches(LOSSES[options.loss], options.batch_size, options.length, dim)
    step, compiled = (ours if system == "ours" else theirs)(directory, options, work)
    start = time.perf_counter()
    for each in work:  # every shape is compiled
        step(*each)
    warm_up, rates, seconds = time.perf_counter() - start, [], []
    for _ in range(options.steps):
        for each in work:
            start = time.perf_counter()
            tokens = step(*each)
            seconds.append(time.perf_counter() - start)
            rates.append(tokens / seconds[-1])
    compiling = max(0.0, warm_up - len(work) * statistics.median(seconds))
    found = {
        "rate": statistics.median(rates),
        "compile": compiling,
        "peak": peak(),
        "compiled": compiled() if options.lora else math.nan,
        "matmul": matmul_rate(options.dtype),
    }
    print(json.dumps(found))


def peak() -> float:
    """Peak GiB of the accelerator's memory, or on a CPU of this process's resident memory."""
    if (stats := jax.devices()[0].memory_stats()) and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def matmul_rate(dtype: str) -> float:
    """FLOP/s of large matmuls in JAX, the best of a few runs."""
    n = 2048 if jax.default_backend() == "cpu" else 16_384
    a = jnp.ones((n, n), dtype)
    multiply = jax.jit(lambda a: a @ a)
    multiply(a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def step_flops(config: EncoderConfig, tokens: int) -> float:
    """FLOPs of a step per token of a text of `tokens` tokens: forward, and twice that for the gradient."""
    return 3 * (linear_flops(config) + attention_flops(config, tokens))


def in_a_process(system: str, directory: Path, options: argparse.Namespace) -> dict[str, float]:
    changed = {"checkpoint": directory, "loss": options.loss, "batch-size": options.batch_size, "grad-cache": 0}
    changed |= {"mini-batch": options.mini_batch, "rank": options.rank, "measure": SYSTEMS[system]}
    command = [sys.executable, __file__, *sys.argv[1:]]
    command += [part for name, value in changed.items() for part in (f"--{name}", str(value))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def medians(directory: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Results of each system, the medians of its processes, which take turns."""
    systems = list(SYSTEMS)[: 1 if options.alone else 2]
    runs = {system: [] for system in systems}
    for _ in range(options.repeats):
        for system in systems:
            runs[system].append(in_a_process(system, directory, options))
            print(options.loss, options.batch_size, system, runs[system][-1], flush=True)
    return {
        system: {key: statistics.median(run[key] for run in each) for key in each[0]} for system, each in runs.items()
    }


def rows_of(directory: Path, config: EncoderConfig, options: argparse.Namespace) -> list[list[object]]:
    best = medians(directory, options)
    systems = list(best)
    flops = step_flops(config, options.length or 24)  # the card's texts have about 24 tokens
    return [
        [
            system,
            found["rate"],
            found["rate"] / best[systems[-1]]["rate"],
            found["peak"],
            found["peak"] / best[systems[-1]]["peak"],
            found["compile"],
            found["rate"] * flops / found["matmul"],
        ]
        for system, found in best.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="the random checkpoint; written if it does not exist")
    parser.add_argument("--loss", default="triplet", choices=["all", *LOSSES])
    parser.add_argument("--mini-batch", type=int, default=0, help="rows that pass the encoder at once; 0 is all")
    parser.add_argument("--grad-cache", type=int, default=0, help="batch size to measure GradCache with --mini-batch")
    parser.add_argument("--small", action="store_true", help="use a small encoder of two layers, to try the script")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of a step")
    parser.add_argument("--length", type=int, default=0, help="tokens of every text; 0 uses the card's triplets")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of ours; theirs is float32"
    )
    parser.add_argument("--no-dropout", action="store_true")
    parser.add_argument("--remat", action="store_true", help="rematerialize our layers")
    parser.add_argument("--steps", type=int, default=2, help="measurements of each of the three batches")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each system")
    parser.add_argument(
        "--lora", type=int, default=0, metavar="RANK", help="measure LoRA of this rank and full training"
    )
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help="without the peer")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    parser.add_argument("--measure", choices=list(SYSTEMS.values()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = SMALL if options.small else STELLA
    if options.measure:
        measure(options.measure, options.checkpoint, options)
    else:
        compare(config, options)


def compare(config: EncoderConfig, options: argparse.Namespace) -> None:
    """Measures both systems and publishes the table."""
    what = f"{options.length} tokens a text" if options.length else "the card's triplets"
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_checkpoint(options.checkpoint or Path(scratch) / "stella", config)
        if options.grad_cache:
            title = f"GradCache: {CACHED}, {what}, {options.dtype}"
            columns = ["system", "rows", "mini-batch", "useful tok/s", "peak GiB", "of one mini-batch"]
            rows = parts(directory, options)
        elif options.lora:
            title = f"LoRA: {options.loss}, {options.batch_size} rows a step, {what}, {options.dtype}"
            columns = ["system", "trained", "useful tok/s", "peak GiB", "of full training", "compiled GiB"]
            rows = adapters(directory, options)
        elif options.loss == "all":
            title = f"losses: {options.batch_size} rows a step, {what}, {options.dtype}"
            columns = ["loss", "useful tok/s", "theirs", "ratio", "peak GiB", "of theirs"]
            rows = each_loss(directory, options)
        else:
            title = f"train: {options.loss}, {options.batch_size} rows a step, {what}, {options.dtype}"
            columns = ["system", "useful tok/s", "ratio", "peak GiB", "of theirs", "compile s", "of the matmul rate"]
            rows = rows_of(directory, config, options)
    publish(title, table(columns, rows), options.out)


def each_loss(directory: Path, options: argparse.Namespace) -> list[list[object]]:
    found = [medians(directory, argparse.Namespace(**vars(options) | {"loss": loss})) for loss in LOSSES]
    sides = [(each["stella-jax"], [*each.values()][-1]) for each in found]
    return [
        [loss, our["rate"], their["rate"], our["rate"] / their["rate"], our["peak"], our["peak"] / their["peak"]]
        for loss, (our, their) in zip(LOSSES, sides, strict=True)
    ]


def parts(directory: Path, options: argparse.Namespace) -> list[list[object]]:
    """Rows for a batch of one mini-batch, and for the whole batch in mini-batches."""
    alone = {"loss": CACHED, "batch_size": options.mini_batch, "mini_batch": 0}
    whole = {"loss": CACHED, "batch_size": options.grad_cache}
    small, large = (medians(directory, argparse.Namespace(**vars(options) | each)) for each in (alone, whole))
    return [
        [system, rows, options.mini_batch, run["rate"], run["peak"], run["peak"] / small[system]["peak"]]
        for system in small
        for rows, run in ((options.mini_batch, small[system]), (options.grad_cache, large[system]))
    ]


def adapters(directory: Path, options: argparse.Namespace) -> list[list[object]]:
    """Rows for full training and for LoRA."""
    ranks = (0, options.lora)
    full, lora = (medians(directory, argparse.Namespace(**vars(options) | {"rank": rank})) for rank in ranks)
    return [
        [system, what, run["rate"], run["peak"], run["peak"] / full[system]["peak"], _or_dash(run["compiled"])]
        for system in full
        for what, run in (("all parameters", full[system]), (f"adapters of rank {options.lora}", lora[system]))
    ]


def _or_dash(value: float) -> object:
    return "-" if math.isnan(value) else value


if __name__ == "__main__":
    main()
