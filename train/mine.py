"""python -m train.mine PAIRS --model M --out FILE"""

import sys

from stella_jax.search_path import leave_out_working_directory

if __name__ == "__main__":
    leave_out_working_directory()

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from stella_jax.cli_errors import exit_code
from stella_jax.option_types import positive, whole

DESCRIPTION = """
Adds hard negatives to pairs of texts: candidates that a model takes for near to the anchor, and that are not known as
its positives. The options are those of sentence-transformers' mine_hard_negatives; scores are cosine similarities. A
mine that was ended in whatever way goes on when the same command is given again.
"""
FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")


def parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    parser.add_argument(
        "pairs", metavar="PAIRS", help=".jsonl, .csv (or .gz, .zst) or .parquet of anchors and positives"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="of rows for training; .jsonl, .csv or .parquet")
    parser.add_argument("--corpus", metavar="FILE", help="of candidates, or .txt (default: the positives alone)")
    parser.add_argument("--work", metavar="DIR", help="for texts and embeddings; kept (default: FILE.work, removed)")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help="a bar (default: on a terminal)")
    _add_model(parser.add_argument_group("the model"))
    _add_columns(parser.add_argument_group("columns and prompts"))
    _add_choice(parser.add_argument_group("which candidates become negatives"))
    group = parser.add_argument_group("rows")
    group.add_argument("--output-format", choices=FORMATS, default="triplet", help="(triplet)")
    group.add_argument("--output-scores", action="store_true", help="add the column score")
    return parser


def _add_model(group) -> None:
    group.add_argument("--model", default="tiny", help="tiny, a directory, or a repo id (tiny)")
    group.add_argument("--revision", help="branch, tag or commit of a repo")
    group.add_argument("--dim", type=positive, help="which head, by its dimension (default: the checkpoint's)")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="to compute in (default: float32 on CPU)")
    group.add_argument("--mesh", metavar="SIZES", help="such as data=4 (default: rows over all accelerators)")
    group.add_argument("--max-length", type=positive, metavar="TOKENS", help="cut texts here (default: the model's)")


def _add_columns(group) -> None:
    group.add_argument("--anchor-column", default="anchor", metavar="NAME", help="(anchor)")
    group.add_argument("--positive-column", default="positive", metavar="NAME", help="(positive)")
    group.add_argument("--corpus-column", default="text", metavar="NAME", help="of the corpus (text)")
    group.add_argument("--anchor-prompt", metavar="NAME", help="put before anchors, or 'none' (default: queries')")
    group.add_argument("--corpus-prompt", metavar="NAME", help="before candidates, or 'none' (default: documents')")


def _add_choice(group) -> None:
    group.add_argument("--range-min", type=whole, default=0, metavar="N", help="leave out the nearest N (0)")
    group.add_argument("--range-max", type=positive, metavar="N", help="look at the nearest N (default: enough)")
    group.add_argument("--max-score", type=float, metavar="S", help="of a negative")
    group.add_argument("--min-score", type=float, metavar="S", help="of a negative")
    group.add_argument("--absolute-margin", type=float, metavar="M", help="of a negative below the positive's score")
    group.add_argument("--relative-margin", type=float, metavar="M", help="the same, as a share of that score")
    group.add_argument("--num-negatives", type=positive, default=3, metavar="N", help="of an anchor (3)")
    group.add_argument("--sampling-strategy", choices=("top", "random"), default="top", help="(top)")
    group.add_argument("--include-positives", action="store_true", help="among the candidates; writes n-tuple rows")
    group.add_argument("--seed", type=whole, default=42, metavar="N", help="of random sampling (42)")


def run(arguments: argparse.Namespace) -> None:
    from stella_jax.job.options import ModelOptions, RunOptions  # here, so that --help answers at once
    from stella_jax.job.stop import GracefulShutdown, stopping_on_sigterm
    from train.mining import MineCommand, mine
    from train.negatives import MiningOptions

    def options(kind):
        return kind(**{field.name: getattr(arguments, field.name) for field in fields(kind)})

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
    stop = GracefulShutdown(grace=30)
    on_terminal = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    with stopping_on_sigterm(stop):
        print(f"{arguments.out}: {mine(command, RunOptions(stop=stop, show='bar' if on_terminal else 'nothing'))}")


def main(argv: Sequence[str] | None = None, prog: str = "python -m train.mine") -> int:
    arguments = parser(prog).parse_args(argv)
    return exit_code("mine", partial(run, arguments), "; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
