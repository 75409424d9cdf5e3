"""python -m convert SRC DST [--to flax|torch|transformers] [--dry-run] [--verify]"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stella_jax.cli_errors import exit_code

if TYPE_CHECKING:
    from stella_jax.checkpoint import Checkpoint
    from stella_jax.torch_layout import Progress

DESCRIPTION = """
Converts a checkpoint between the PyTorch layout and the Flax one (Orbax parameters and a provenance.json).
SRC may be either, or a repo id, or 'tiny'. DST must not exist, and appears whole or not at all.
"""


def parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=DESCRIPTION)
    parser.add_argument("source", metavar="SRC", help="checkpoint directory, repo id, or 'tiny'")
    parser.add_argument("destination", metavar="DST", type=Path, help="directory to write")
    parser.add_argument(
        "--to",
        choices=("flax", "torch", "transformers"),
        default="flax",
        help="flax (default); torch: names, dtypes and bits as they came; transformers: without prefix, and with a "
        "config.json that transformers' own classes and sentence-transformers load without remote code",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a repo")
    parser.add_argument("--dry-run", action="store_true", help="print the mapping of every tensor and write nothing")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="afterwards compare hashes and embeddings of both sides; a DST that exists is verified, not written",
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="convert parameters changed since their conversion"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    # Imported here so that --help answers at once.
    from tqdm import tqdm

    from convert.report import mapping_table
    from convert.verify import verify
    from stella_jax.checkpoint import Checkpoint
    from stella_jax.hub import resolve

    source = Checkpoint.open(resolve(arguments.source, arguments.revision))
    if arguments.dry_run:
        print(*mapping_table(source), sep="\n")
        return
    if not (arguments.verify and arguments.destination.exists()):
        with tqdm(total=len(source.weights.leaves), unit="leaf", disable=None, leave=False) as bar:
            _convert(source, arguments, progress=lambda _: bar.update())
        print(f"{arguments.source} -> {arguments.destination}: {len(source.weights.leaves)} leaves written")
    if arguments.verify:
        converted = Checkpoint.open(arguments.destination)
        for held in verify(source, converted, arguments.to == "transformers", arguments.accept_changes):
            print(f"verified: {held}")


def _convert(source: "Checkpoint", arguments: argparse.Namespace, progress: "Progress") -> None:
    from convert import to_flax, to_torch

    accept = arguments.accept_changes
    if arguments.to == "flax":
        to_flax(source, arguments.source, arguments.destination, accept_changes=accept, progress=progress)
    else:
        native = arguments.to == "transformers"
        to_torch(source, arguments.destination, native=native, accept_changes=accept, progress=progress)


def main(argv: Sequence[str] | None = None, prog: str = "python -m convert") -> int:
    arguments = parser(prog).parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a conversion needs no accelerator, and must not occupy one
    return exit_code("convert", partial(run, arguments), "; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
