"""Tokens per second of `Stella.encode` against sentence-transformers with transformers' own GteModel.

    python bench/encode.py [--corpus FILE] [--dtype float32 bfloat16] [--out FILE]

Same random weights of stella's full size, same texts, same cores, same run. Only useful tokens count: padding is work
that a system gives itself. Compilation and warm-up are excluded. Needs the test extra on Python 3.11 (torch).
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from checkpoint import write_checkpoint
from report import interleaved, publish, table

from stella_jax import Stella
from stella_jax.batching import Packer
from stella_jax.job.rows import Fields, Row
from stella_jax.job.source import open_sources

BATCH_SIZE = 32  # sentence-transformers' default


def corpus_texts(path: Path, count: int) -> list[str]:
    """The first texts of a corpus file."""
    fields = Fields()
    (source,) = open_sources([path], fields)
    rows = (source.row(number, record, fields) for number, record in enumerate(source.records(fields), 1))
    return [row.text for row in islice((row for row in rows if isinstance(row, Row)), count)]


def long_texts(texts: Sequence[str], count: int) -> list[str]:
    """Texts of thousands of tokens, to be cut at a fixed length."""
    whole = " ".join(texts)
    step = len(whole) // (2 * count)
    return [whole[i * step : i * step + 8000] for i in range(count)]


def workloads(texts: list[str], max_length: int) -> dict[str, tuple[list[str], int, int]]:
    """Name -> texts, max_seq_length, batch size of the peer."""
    return {
        "4 x 128 tokens": (long_texts(texts, 4), 128, 4),
        "4 x 512 tokens": (long_texts(texts, 4), 512, 4),
        f"mixed, {len(texts)} texts": (texts, max_length, BATCH_SIZE),
    }


def useful_share(model: Stella, texts: list[str]) -> float:
    """Useful tokens over all tokens that the device computes."""
    counts = [len(tokens.ids) for tokens in model.tokenize(texts)]
    packer = Packer(model.max_seq_length, model.runner.token_budget)
    batches = [*packer.add(0, counts), *packer.flush(0)]
    return sum(counts) / sum(batch.rows * batch.length for batch in batches)


def peer_model(directory: Path, dtype: str) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch_dtype = getattr(torch, dtype)
    return SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch_dtype}, local_files_only=True)


def measure(directory: Path, texts: list[str], dtype: str, repeats: int) -> list[list[object]]:
    ours, theirs = Stella.from_pretrained(directory, dtype=dtype), peer_model(directory, dtype)
    rows = []
    for name, (batch, length, batch_size) in workloads(texts, ours.max_seq_length).items():
        ours.max_seq_length = theirs.max_seq_length = length
        tokens = sum(len(text.ids) for text in ours.tokenize(batch))
        runs = {
            "ours": partial(ours.encode, batch),
            "theirs": partial(theirs.encode, batch, batch_size=batch_size, show_progress_bar=False),
        }
        seconds = interleaved(runs, repeats)
        mine, peer = tokens / seconds["ours"], tokens / seconds["theirs"]
        rows.append([dtype, name, tokens, useful_share(ours, batch), mine, peer, mine / peer])
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path(__file__).parent.parent / "examples/corpus.jsonl")
    parser.add_argument("--texts", type=int, default=96, help="texts of the mixed corpus")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, help="keep the random checkpoint here, or find it here")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    options = parser.parse_args()
    texts = corpus_texts(options.corpus, options.texts)
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_checkpoint(options.checkpoint or Path(scratch) / "stella")
        rows = [row for dtype in options.dtype for row in measure(directory, texts, dtype, options.repeats)]
    columns = ["dtype", "workload", "useful tokens", "useful share", "stella-jax tok/s", "s-t tok/s", "ratio"]
    publish("encode: stella-jax against sentence-transformers (GteModel)", table(columns, rows), options.out)


if __name__ == "__main__":
    main()
