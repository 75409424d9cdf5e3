"""The command line: parsers of all commands, and exit codes."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from math import inf, nan
from pathlib import Path

from stella_jax import __version__
from stella_jax.chips import CHIPS, Chips
from stella_jax.cli.exit_codes import exit_code
from stella_jax.cli.interrupts import interrupts_after
from stella_jax.cli.option_types import byte_count, positive, whole
from stella_jax.errors import join_words, quoted, short_repr
from stella_jax.option_values import GRACE_SECONDS, MAX_REJECTED, PRECISIONS, SCORE_ACTIVATIONS

# Commands that write a job.
JOBS = ("embed", "score")

EXECUTORS = ("local", "distributed", "ray")

RERANKER = "Alibaba-NLP/gte-multilingual-reranker-base"

# Packages beside this one, and the commands that are their modules.
PACKAGES = ("convert", "train")
MODULES = {
    "convert": ("convert.__main__", "convert a checkpoint between the PyTorch and the Flax layout"),
    "train": ("train.__main__", "fine-tune a checkpoint with a recipe"),
    "mine": ("train.mine", "add hard negatives to pairs for training"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code: 1 after an error, with one sentence on stderr, 2 for wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in MODULES:
        return _run_module(argv[0], argv[1:])
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:  # argparse would print the usage of all commands
        arguments.usage_error(f"unrecognized arguments: {' '.join(map(quoted, unknown))}")
    is_job = arguments.command in JOBS
    if is_job:
        _check_job(arguments)
    writes = is_job and not arguments.dry_run
    kept = "; finished parts are kept, run the same command again to continue" if writes else ""
    return exit_code("stella-jax", partial(_run, arguments), kept)


def _run(arguments: argparse.Namespace) -> None:
    with interrupts_after():
        from stella_jax.cli.commands import COMMANDS  # here, since it imports JAX, which takes seconds

    COMMANDS[arguments.command](arguments)


def _run_module(name: str, argv: Sequence[str]) -> int:
    for package in PACKAGES:  # both: train imports convert
        _import_sibling(package)
    return import_module(MODULES[name][0]).main(argv, f"stella-jax {name}")


def _import_sibling(package: str) -> None:
    """Imports the package that is installed beside this one, even if the user has a convert.py or train.py."""
    if package not in sys.modules:
        spec = PathFinder.find_spec(package, [str(Path(__file__).parents[2])])
        assert spec and spec.loader
        sys.modules[package] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stella-jax", description="Embeddings of the stella, gte and arctic family.")
    parser.add_argument("--version", action="version", version=f"stella-jax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_embed(commands)
    _add_score(commands)
    _add_verify(commands)
    _add_search(commands)
    _add_rank(commands)
    _add_demo(commands)
    for name, (_, description) in MODULES.items():
        _command(commands, name, description)  # for --help; these parse their own options
    return parser


def _check_job(arguments: argparse.Namespace) -> None:
    """Exits with the usage if options do not go together."""
    if arguments.dry_run:
        return
    if arguments.out is None:
        arguments.usage_error("--out is required, except with --dry-run")
    for option in ("all_rows", "chips", "tokens_per_second"):
        if getattr(arguments, option):
            arguments.usage_error(f"--{option.replace('_', '-')} requires --dry-run")


def _add_embed(commands) -> None:
    command = _command(commands, "embed", "embed the rows of files into a directory of Parquet parts")
    kinds = ".jsonl, .csv, .txt (or .gz, .zst), .parquet"
    _add_job(command, "tiny", kinds)
    heads = command.add_mutually_exclusive_group()
    heads.add_argument("--dim", type=positive, help="dimension of the head to use (default: the checkpoint's)")
    heads.add_argument("--dims", type=_dims, metavar="D,D", help="several heads, one column embedding_D each")
    command.add_argument(
        "--prompt", metavar="NAME", help="prompt to put before each text, or 'none' (default: the documents' prompt)"
    )
    command.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, default=False, help="scale to unit length"
    )
    command.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="precision of the embeddings (default: float32)"
    )
    command.add_argument(
        "--ranges", metavar="FILE", help="ranges for int8 and uint8: .npy, .npz or .json (default: from a sample)"
    )
    command.set_defaults(query_field=None, activation=None)


def _add_score(commands) -> None:
    command = _command(commands, "score", "score the pairs of files into a directory of Parquet parts")
    _add_job(command, RERANKER, ".jsonl, .csv (or .gz, .zst), .parquet")
    command.add_argument(
        "--query-field", default="query", metavar="FIELD", help="field or column of the query (default: query)"
    )
    _add_activation(command)
    command.set_defaults(dim=None, dims=None, prompt=None, normalize=False, precision="float32", ranges=None)


def _add_activation(command: argparse.ArgumentParser) -> None:
    group = command.add_mutually_exclusive_group()
    group.add_argument(
        "--activation", choices=SCORE_ACTIVATIONS, help="activation of the scores (default: the checkpoint's)"
    )
    raw = "same as --activation none"
    group.add_argument("--raw-scores", dest="activation", action="store_const", const="none", help=raw)


def _add_job(command: argparse.ArgumentParser, model: str, kinds: str) -> None:
    """Arguments of all commands that write a job."""
    inputs = f"file, directory, pattern or URL: {kinds}"
    command.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    command.add_argument("--out", metavar="DIR", help="output directory or URL: new, or of the same job to continue")
    command.set_defaults(usage_error=command.error)
    _add_model(command, model)
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of the computation (default: float32 on CPU, else bfloat16)",
    )
    _add_columns(command)
    command.add_argument(
        "--max-length", type=positive, metavar="TOKENS", help="truncate texts to this length (default: the model's)"
    )
    command.add_argument("--mesh", metavar="SIZES", help="for example data=4,model=2 (default: all accelerators)")
    command.add_argument("--part-rows", type=positive, metavar="ROWS", help="rows per output file")
    command.add_argument("--split-bytes", type=byte_count, metavar="BYTES", help="bytes of an input file per split")
    command.add_argument(
        "--max-rejected",
        type=_share,
        default=MAX_REJECTED,
        metavar="SHARE",
        help=f"maximum share of rejected rows (default: {MAX_REJECTED:.0%}%)",
    )
    command.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="show a bar (default: on a terminal)"
    )
    _add_dry_run(command)
    _add_executor(command)


def _add_columns(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--text-field", default="text", metavar="FIELD", help="field or column of the text (default: text)"
    )
    command.add_argument(
        "--id-field", metavar="FIELD", help="field or column of the id (default: 'id' if it exists, else file and row)"
    )
    command.add_argument(
        "--keep", type=_names, default=(), metavar="COLUMN,...", help="input columns to copy to the output"
    )


def _add_dry_run(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("estimate")
    group.add_argument(
        "--dry-run", action="store_true", help="estimate the job from a sample in seconds; write nothing"
    )
    group.add_argument("--all-rows", action="store_true", help="read all rows; list invalid rows and repeated ids")
    rate = group.add_mutually_exclusive_group()
    chips = f"hardware of the job, such as v5e:64 ({', '.join(CHIPS)}; default: measure this machine)"
    rate.add_argument("--chips", type=_chips, metavar="KIND:N", help=chips)
    rate.add_argument("--tokens-per-second", type=_rate, metavar="N", help="speed of one chip")


def _add_executor(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("processes")
    group.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="local",
        help="local: this process; distributed: one of many processes; ray: actors",
    )
    group.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="distributed: number of processes (default: from the environment)",
    )
    group.add_argument("--process", type=whole, metavar="I", help="distributed: index of this process, from 0")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="distributed: address of process 0 (default: from the environment)"
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="ray: address of the cluster (default: a running one, or a new local one)",
    )
    group.add_argument(
        "--grace",
        type=whole,
        default=GRACE_SECONDS,
        metavar="SECONDS",
        help=f"time to finish open parts after SIGTERM (default: {GRACE_SECONDS})",
    )


def _add_verify(commands) -> None:
    command = _command(commands, "verify", "check every byte of finished jobs")
    command.add_argument("out", nargs="+", metavar="DIR", help="output of embed or score")
    command.add_argument("--sample", type=positive, default=0, metavar="ROWS", help="also embed this many rows again")
    where = "for --sample: an input that has moved, under its old file name, or a pattern; can be repeated"
    command.add_argument("--input", action="append", default=[], dest="inputs", metavar="INPUT", help=where)
    _add_model(command, None)


def _add_search(commands) -> None:
    command = _command(commands, "search", "find the rows of finished jobs nearest to a query")
    command.add_argument("out", nargs="+", metavar="DIR", help="output of embed")
    command.add_argument("query")
    command.add_argument("--dim", type=positive, help="dimension of the head to search (default: the job's first)")
    command.add_argument("-k", type=positive, default=10, help="number of results (default: 10)")
    _add_model(command, None)
    command.add_argument(
        "--prompt", metavar="NAME", help="prompt to put before the query, or 'none' (default: the queries' prompt)"
    )


def _add_rank(commands) -> None:
    command = _command(commands, "rank", "search, then rank the results with a reranker")
    command.add_argument("out", nargs="+", metavar="DIR", help="output of embed, whose inputs must still be there")
    command.add_argument("query")
    command.add_argument(
        "--rerank", metavar="MODEL", default=RERANKER, help=f"directory or repo id (default: {RERANKER})"
    )
    command.add_argument("--rerank-revision", metavar="REVISION", help="branch, tag or commit of that repo")
    _add_activation(command)
    command.add_argument("-k", type=positive, default=10, help="number of results (default: 10)")
    command.add_argument(
        "--candidates",
        type=positive,
        default=100,
        metavar="N",
        help="number of search results to rank, at least -k (default: 100)",
    )
    command.add_argument("--dim", type=positive, help="dimension of the head to search (default: the job's first)")
    _add_model(command, None)
    command.add_argument("--prompt", metavar="NAME", help="prompt to put before the query for the search, or 'none'")


def _add_demo(commands) -> None:
    command = _command(commands, "demo", "run the example of stella's model card")
    _add_model(command, "tiny")
    command.add_argument("--dim", type=positive, help="dimension of the head to use (default: the checkpoint's)")
    command.add_argument("--task", choices=("s2p", "s2s"), help="prompt of the queries (default: the checkpoint's)")


def _command(commands, name: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=description, description=f"{description[0].upper()}{description[1:]}.")
    command.set_defaults(usage_error=command.error)
    return command


def _add_model(command: argparse.ArgumentParser, default: str | None) -> None:
    note = default or "the job's"
    included = "" if default == RERANKER else "tiny, "  # tiny is not a reranker
    command.add_argument("--model", default=default, help=f"{included}a directory or a repo id (default: {note})")
    command.add_argument("--revision", help="branch, tag or commit of a repo")


def _chips(text: str) -> Chips:
    """Chips from "v5e" or "v5e:64"."""
    name, _, count = text.partition(":")
    if name not in CHIPS:
        raise argparse.ArgumentTypeError(f"unknown chip {short_repr(text)}; choose {join_words(CHIPS, 'or')}")
    return Chips(name, positive(count or "1"))


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = nan
    if not 0 < rate < inf:
        raise argparse.ArgumentTypeError(f"{short_repr(text)} is not a number above 0")
    return rate


def _dims(text: str) -> tuple[int, ...]:
    dims = tuple(positive(item) for item in text.split(","))
    if len(set(dims)) != len(dims):
        raise argparse.ArgumentTypeError(f"repeated dimension in {short_repr(text)}")
    return dims


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"empty name in {short_repr(text)}")
    return names


def _share(text: str) -> float:
    """A share from "1%" or "0.01"."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{short_repr(text)} is not a share such as 1% or 0.01")
    return share
