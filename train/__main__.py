"""python -m train RECIPE.toml [--set section.key=value ...] [--executor distributed]"""

import sys

from stella_jax.search_path import leave_out_working_directory

if __name__ == "__main__":
    leave_out_working_directory()

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from stella_jax.cli_errors import exit_code
from stella_jax.errors import StellaError
from stella_jax.option_types import positive, whole

DESCRIPTION = """
Fine-tunes a checkpoint as a recipe says. A run that was ended in whatever way goes on when the same command is given
again, with the same bits as if it had not been.
"""


def parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
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
    group = parser.add_argument_group("who trains")
    group.add_argument(
        "--executor", choices=("local", "distributed"), default="local", help="this process; all of many hosts together"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="distributed: of process 0, if nothing tells")
    group.add_argument("--processes", type=positive, metavar="N", help="distributed: how many, if nothing tells")
    group.add_argument("--process", type=whole, metavar="I", help="distributed: which of them this is, from 0")
    return parser


def run(arguments: argparse.Namespace) -> None:
    from train.recipe import read_recipe  # here and below, so that --help answers at once

    recipe = read_recipe(arguments.recipe, arguments.overrides)
    where = _where(arguments)

    from tqdm import tqdm

    from stella_jax.devices import start_jax
    from stella_jax.job.stop import GracefulShutdown, stopping_on_sigterm
    from train.hosts import Hosts, collective_errors, initialize
    from train.loop import train

    def warn(sentence: str) -> None:
        tqdm.write(f"train: warning: {sentence}", file=sys.stderr)

    if arguments.executor == "distributed":
        initialize(*where)
    start_jax()
    stop = GracefulShutdown(grace=float("inf"))
    shown = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    with stopping_on_sigterm(stop), collective_errors():
        summary = train(recipe, stop, shown, warn)
    if Hosts().is_primary:
        print(f"{recipe.output}: {summary}")


def _where(arguments: argparse.Namespace) -> tuple[str | None, int | None, int | None]:
    """How the processes meet, and which this is, where that is given."""
    given = (arguments.coordinator, arguments.processes, arguments.process)
    missing = [value for value in given if value is None]
    if not missing and arguments.process >= arguments.processes:
        raise StellaError(f"--process {arguments.process} is none of {arguments.processes}, counted from 0.")
    if arguments.executor != "distributed" and len(missing) < 3:
        raise StellaError("--coordinator, --processes and --process go with --executor distributed.")
    if len(missing) in (1, 2):
        raise StellaError("--coordinator, --processes and --process go together; without them, the machine must tell.")
    return given


def main(argv: Sequence[str] | None = None, prog: str = "python -m train") -> int:
    arguments = parser(prog).parse_args(argv)
    end = "; the same command goes on after the newest checkpoint"
    work = partial(exit_code, "train", partial(run, arguments), end)
    if arguments.executor == "local":
        return work()
    from train.hosts import run_to_exit

    return run_to_exit(work)


if __name__ == "__main__":
    sys.exit(main())
