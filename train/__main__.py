"""python -m train RECIPE.toml [--set section.key=value ...] [--executor distributed]"""

import sys

from stella_jax.cli.search_path import leave_out_working_directory

if __name__ == "__main__":
    leave_out_working_directory()

import argparse
from collections.abc import Sequence
from functools import partial

from stella_jax.cli.exit_codes import exit_code
from stella_jax.cli.interrupts import interrupts_after
from stella_jax.cli.option_types import positive, whole
from stella_jax.errors import StellaError

DESCRIPTION = """
Fine-tunes a checkpoint with a recipe. An interrupted run resumes when the same command is run again, and gives the same
bits as an uninterrupted one.
"""


def parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    parser.add_argument("recipe", metavar="RECIPE", help="a .toml file; train/recipes has some")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override a key of the recipe; may be repeated",
    )
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="show a progress bar (default: on a terminal)"
    )
    group = parser.add_argument_group("several hosts")
    group.add_argument(
        "--executor",
        choices=("local", "distributed"),
        default="local",
        help="local: this process alone (default); distributed: the processes of several hosts together",
    )
    where = "(default: from the environment)"
    group.add_argument("--coordinator", metavar="HOST:PORT", help=f"distributed: address of process 0 {where}")
    group.add_argument("--processes", type=positive, metavar="N", help=f"distributed: number of processes {where}")
    group.add_argument("--process", type=whole, metavar="I", help=f"distributed: index of this one, from 0 {where}")
    return parser


def run(arguments: argparse.Namespace) -> None:
    with interrupts_after():  # imported here and below, so that --help answers at once
        from train.recipe import read_recipe

    recipe = read_recipe(arguments.recipe, arguments.overrides)
    cluster = _cluster(arguments)

    with interrupts_after():
        from tqdm import tqdm

        from stella_jax.devices import start_jax
        from stella_jax.graceful_shutdown import GracefulShutdown, stopping_on_sigterm
        from train.hosts import Hosts, collective_errors, initialize
        from train.loop import train

    def warn(sentence: str) -> None:
        tqdm.write(f"train: warning: {sentence}", file=sys.stderr)

    if arguments.executor == "distributed":
        initialize(*cluster)
    start_jax()
    stop = GracefulShutdown(grace=float("inf"))
    show_progress = sys.stderr.isatty() if arguments.progress is None else arguments.progress
    with stopping_on_sigterm(stop), collective_errors():
        summary = train(recipe, stop, show_progress, warn)
    if Hosts().is_primary:
        print(f"{recipe.output}: {summary}")


def _cluster(arguments: argparse.Namespace) -> tuple[str | None, int | None, int | None]:
    """Coordinator, number of processes and index of this one; all None where the environment has them."""
    given = (arguments.coordinator, arguments.processes, arguments.process)
    missing = [value for value in given if value is None]
    if not missing and arguments.process >= arguments.processes:
        raise StellaError(
            f"--process {arguments.process}: must be below --processes {arguments.processes}; processes count from 0."
        )
    if arguments.executor != "distributed" and len(missing) < 3:
        raise StellaError(
            "--coordinator, --processes and --process: for --executor distributed only; add it or leave them out."
        )
    if len(missing) in (1, 2):
        raise StellaError(
            "--coordinator, --processes and --process: pass all three, or none to take them from the environment."
        )
    return given


def main(argv: Sequence[str] | None = None, prog: str = "python -m train") -> int:
    arguments = parser(prog).parse_args(argv)
    end = "; run the same command again to resume from the newest checkpoint"
    work = partial(exit_code, "train", partial(run, arguments), end)
    if arguments.executor == "local":
        return work()
    from train.hosts import run_to_exit

    return run_to_exit(work)


if __name__ == "__main__":
    sys.exit(main())
