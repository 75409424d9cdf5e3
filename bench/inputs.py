"""Common inputs of benchmarks: options, a checkpoint, texts."""

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from checkpoint import add_model, config_of, write_checkpoint
from safetensors import safe_open

from stella_jax.checkpoint.hub import TINY
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.rows import Row, RowFields

CORPUS = Path(__file__).parent.parent / "tests" / "data" / "corpus_20k.jsonl.gz"


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the scripts' common options."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="the random checkpoint; written if it does not exist")
    parser.add_argument("--tiny", action="store_true", help="use the included checkpoint, which no peer can read")
    add_model(parser)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="file of texts")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    return parser


@contextmanager
def checkpoint(options: argparse.Namespace) -> Iterator[Path]:
    """The directory of the options' checkpoint, which is written if it does not exist."""
    with tempfile.TemporaryDirectory() as scratch:
        path = options.checkpoint or Path(scratch) / "model"
        yield TINY if options.tiny else write_checkpoint(path, config_of(options))


def size_of(directory: Path) -> str:
    """The encoder's number of parameters in millions, as in `434M`."""
    with safe_open(directory / "model.safetensors", framework="numpy") as file:
        names = list(file.keys())
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return f"{count / 1e6:.0f}M"


def corpus_texts(path: Path, count: int) -> list[str]:
    """The first texts of a corpus file."""
    fields = RowFields()
    (source,) = open_inputs([path], fields)
    rows = (source.row(number, record, fields) for number, record in enumerate(source.records(fields), 1))
    return [str(row.text) for row in islice((row for row in rows if isinstance(row, Row)), count)]


def long_texts(texts: Sequence[str], count: int, length: int) -> list[str]:
    """Texts with more than `length` tokens, to be truncated; they start at different places of the joined texts."""
    whole = " ".join(texts)
    wanted = 8 * length  # characters: tokens of English are shorter than 8 on average
    whole *= 1 + (wanted + len(whole)) // len(whole)
    step = max(1, (len(whole) - wanted) // count)
    return [whole[i * step : i * step + wanted] for i in range(count)]
