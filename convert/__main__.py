"""python -m convert SRC DST [--to flax|torch|transformers] [--dry-run] [--verify]"""

import sys

from stella_jax.cli.search_path import leave_out_working_directory

if __name__ == "__main__":
    leave_out_working_directory()

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stella_jax.cli.exit_codes import exit_code
from stella_jax.cli.interrupts import interrupts_after

if TYPE_CHECKING:
    from stella_jax.checkpoint.checkpoint import Checkpoint
    from stella_jax.checkpoint.torch_layout import OnLeaf

DESCRIPTION = """
Converts a checkpoint between the PyTorch layout and the Flax layout (Orbax parameters and provenance.json). SRC is a
directory in either layout, a repo id, or 'tiny'. DST must not exist; it is written atomically.
"""


def parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    parser.add_argument("source", metavar="SRC", help="checkpoint directory, repo id, or 'tiny'")
    parser.add_argument("destination", metavar="DST", help="directory to write")
    parser.add_argument(
        "--to",
        choices=("flax", "torch", "transformers"),
        default="flax",
        help="flax (default); torch: the original names, dtypes and bits; transformers: names and config.json that "
        "transformers and sentence-transformers load without remote code",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a repo")
    parser.add_argument("--dry-run", action="store_true", help="print how each tensor is mapped; write nothing")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare hashes and embeddings of SRC and DST afterwards; do not write an existing DST",
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="accept parameters that were changed after the conversion"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    with interrupts_after():  # imported here, so that --help is fast
        from tqdm import tqdm

        from convert.report import mapping_table
        from convert.verify import verify
        from stella_jax.checkpoint.checkpoint import Checkpoint
        from stella_jax.checkpoint.hub import resolve
        from stella_jax.storage.new_directory import check_destination

    source = Checkpoint.open(resolve(arguments.source, arguments.revision))
    destination = check_destination(arguments.destination, source.directory.root)
    if arguments.dry_run:
        print(*mapping_table(source), sep="\n")
        return
    if not (arguments.verify and destination.exists()):
        with tqdm(total=len(source.weights.leaves), unit="leaf", disable=None, leave=False) as bar:
            _convert(source, destination, arguments, on_leaf=lambda _: bar.update())
        print(f"{arguments.source} -> {destination}: {len(source.weights.leaves)} leaves written")
    if arguments.verify:
        converted = Checkpoint.open(destination)
        for sentence in verify(source, converted, arguments.to == "transformers", arguments.accept_changes):
            print(f"verified: {sentence}")


def _convert(source: "Checkpoint", destination: Path, arguments: argparse.Namespace, on_leaf: "OnLeaf") -> None:
    from convert import to_flax, to_torch

    accept = arguments.accept_changes
    if arguments.to == "flax":
        to_flax(source, arguments.source, destination, accept_changes=accept, on_leaf=on_leaf)
    else:
        native = arguments.to == "transformers"
        to_torch(source, destination, native=native, accept_changes=accept, on_leaf=on_leaf)


def main(argv: Sequence[str] | None = None, prog: str = "python -m convert") -> int:
    arguments = parser(prog).parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a conversion needs no accelerator
    return exit_code("convert", partial(run, arguments), "; the destination is complete, or was not written")


if __name__ == "__main__":
    sys.exit(main())
