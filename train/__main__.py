"""python -m train RECIPE.toml [--set section.key=value ...]"""

import argparse
import sys
from functools import partial
from pathlib import Path

from stella_jax.exits import exit_code

DESCRIPTION = """
Fine-tunes a checkpoint as a recipe says. A run that was ended in whatever way goes on when the same command is given
again, with the same bits as if it had not been.
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train", description=DESCRIPTION)
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a .toml file; train/recipes has some")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="in place of the recipe's",
    )
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help="a bar (default: on a terminal)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    from train.recipe import read_recipe  # here and below, so that --help answers at once

    recipe = read_recipe(arguments.recipe, arguments.overrides)

    from tqdm import tqdm

    from stella_jax.devices import start_jax
    from stella_jax.job.stop import Stop, stopping_on_sigterm
    from train.loop import train

    def warn(sentence: str) -> None:
        tqdm.write(f"train: warning: {sentence}", file=sys.stderr)

    start_jax()
    stop = Stop(grace=float("inf"))
    shown = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    with stopping_on_sigterm(stop):
        print(f"{recipe.output}: {train(recipe, stop, shown, warn)}")


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    return exit_code("train", partial(run, arguments), "; the same command goes on after the newest checkpoint")


if __name__ == "__main__":
    sys.exit(main())
