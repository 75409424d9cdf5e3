"""python -m train.mine PAIRS --model M --out FILE"""

import sys

from stella_jax.cli.search_path import leave_out_working_directory

if __name__ == "__main__":
    leave_out_working_directory()

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from stella_jax.cli.exit_codes import exit_code
from stella_jax.cli.interrupts import interrupts_after
from stella_jax.cli.option_types import positive, whole
from stella_jax.option_values import GRACE_SECONDS

DESCRIPTION = """
Mines hard negatives for pairs of texts: candidates that a model ranks near the anchor and that are not its positives.
The options are those of sentence-transformers' mine_hard_negatives; scores are cosine similarities. An interrupted
command resumes when it is run again.
"""
OUTPUT_FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")


def parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    parser.add_argument(
        "pairs", metavar="PAIRS", help=".jsonl, .csv (or .gz, .zst) or .parquet of anchors and positives"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="training rows to write: .jsonl, .csv (or .gz, .zst) or .parquet"
    )
    parser.add_argument("--corpus", metavar="FILE", help="more candidates, also .txt (default: the positives only)")
    parser.add_argument(
        "--work", metavar="DIR", help="keep texts and embeddings here (default: FILE.work, removed at the end)"
    )
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="show a progress bar (default: on a terminal)"
    )
    _add_model(parser.add_argument_group("model"))
    _add_columns(parser.add_argument_group("columns and prompts"))
    _add_selection(parser.add_argument_group("selection of negatives"))
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output-format", choices=OUTPUT_FORMATS, default="triplet", help="format of the rows (triplet)"
    )
    group.add_argument("--output-scores", action="store_true", help="add the column score")
    return parser


def _add_model(group) -> None:
    group.add_argument("--model", default="tiny", help="tiny, a directory, or a repo id (tiny)")
    group.add_argument("--revision", help="branch, tag or commit of a repo")
    group.add_argument("--dim", type=positive, help="dimension of the head to use (default: the checkpoint's)")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute dtype (default: float32 on CPU)")
    group.add_argument("--mesh", metavar="SIZES", help="device mesh, such as data=4 (default: all accelerators)")
    group.add_argument(
        "--max-length", type=positive, metavar="TOKENS", help="truncate texts to this (default: the model's limit)"
    )


def _add_columns(group) -> None:
    group.add_argument("--anchor-column", default="anchor", metavar="NAME", help="column of PAIRS (anchor)")
    group.add_argument("--positive-column", default="positive", metavar="NAME", help="column of PAIRS (positive)")
    group.add_argument("--corpus-column", default="text", metavar="NAME", help="column of the corpus (text)")
    group.add_argument(
        "--anchor-prompt", metavar="NAME", help="prompt of anchors, or 'none' (default: the model's for queries)"
    )
    group.add_argument(
        "--corpus-prompt", metavar="NAME", help="prompt of candidates, or 'none' (default: the model's for documents)"
    )


def _add_selection(group) -> None:
    group.add_argument("--range-min", type=whole, default=0, metavar="N", help="skip the nearest N candidates (0)")
    group.add_argument(
        "--range-max", type=positive, metavar="N", help="consider only the nearest N (default: as many as needed)"
    )
    group.add_argument("--max-score", type=float, metavar="S", help="maximum score of a negative")
    group.add_argument("--min-score", type=float, metavar="S", help="minimum score of a negative")
    group.add_argument(
        "--absolute-margin", type=float, metavar="M", help="least distance of a negative's score below the positive's"
    )
    group.add_argument("--relative-margin", type=float, metavar="M", help="the same as a share of the positive's score")
    group.add_argument("--num-negatives", type=positive, default=3, metavar="N", help="negatives for each anchor (3)")
    group.add_argument(
        "--sampling-strategy",
        choices=("top", "random"),
        default="top",
        help="take the nearest, or a random sample (top)",
    )
    group.add_argument(
        "--include-positives", action="store_true", help="keep positives as candidates; writes n-tuple rows"
    )
    group.add_argument("--seed", type=whole, default=42, metavar="N", help="seed of random sampling (42)")


def run(arguments: argparse.Namespace) -> None:
    with interrupts_after():  # imported here, so that --help answers at once
        from stella_jax.graceful_shutdown import GracefulShutdown, stopping_on_sigterm
        from stella_jax.job.options import ModelOptions, RunOptions
        from train.hard_negatives import MineCommand, mine
        from train.negative_selection import MiningOptions

    def options(kind):
        given = vars(arguments)
        return kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})

    command = MineCommand(
        pairs=arguments.pairs,
        out=arguments.out,
        model=options(ModelOptions),
        options=options(MiningOptions),
        corpus=arguments.corpus,
        columns=(arguments.anchor_column, arguments.positive_column, arguments.corpus_column),
        work=arguments.work,
        anchor_prompt=arguments.anchor_prompt,
        corpus_prompt=arguments.corpus_prompt,
        output_format="n-tuple" if arguments.include_positives else arguments.output_format,
        output_scores=arguments.output_scores,
    )
    stop = GracefulShutdown(GRACE_SECONDS)
    on_terminal = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    with stopping_on_sigterm(stop):
        print(f"{arguments.out}: {mine(command, RunOptions(stop=stop, show='bar' if on_terminal else 'nothing'))}")


def main(argv: Sequence[str] | None = None, prog: str = "python -m train.mine") -> int:
    arguments = parser(prog).parse_args(argv)
    return exit_code("mine", partial(run, arguments), "; run the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
