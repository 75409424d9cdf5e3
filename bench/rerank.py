"""Pairs per second of `Reranker.predict` and of sentence-transformers' CrossEncoder, on pairs of mixed lengths.

    python bench/rerank.py [--checkpoint DIR] [--layers 3] [--pairs 64] [--dtype float32 ...] [--out FILE]

Same random weights (gte-multilingual-reranker-base's sizes with fewer layers and words), same pairs, same cores, same
run, in turns; compilation and warm-up are excluded. A text is one to three entries of the corpus, a query its first
headword. CrossEncoder runs 32 pairs at a time, sorted by length, as is its default. Needs the extra `test`.
"""

import argparse
import shutil
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from inputs import CORPUS, corpus_texts
from report import interleaved, publish, table
from systems import BATCH_SIZE, threads

from stella_jax import Reranker
from stella_jax.batching import Packer
from stella_jax.tokenizer.pair_tokenizer import Pair

TOKENIZER = Path(__file__).parent.parent / "tests/goldens/gte-reranker"
LONGEST = 3  # entries of the corpus in a text
SAME = {"float32": 1e-4, "bfloat16": 0.1}  # largest difference of raw scores: more means another model
COLUMNS = ("dtype", "pairs", "useful tokens", "system", "useful share", "pairs/s", "tok/s", "stella-jax against it")


def write_reranker(directory: Path, layers: int) -> Path:
    """Writes a random checkpoint, unless it exists, and returns its directory."""
    import torch
    from transformers import GteConfig, GteForSequenceClassification

    if (directory / "config.json").exists():
        return directory
    rope = {"rope_type": "linear", "rope_theta": 160000.0, "factor": 8 ** (2 / 64)}
    config = GteConfig(
        vocab_size=2048,
        hidden_size=768,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=8192,
        type_vocab_size=1,
        pad_token_id=1,
        rope_parameters=rope,
    )
    config.num_labels = 1
    torch.manual_seed(0)
    GteForSequenceClassification(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(TOKENIZER / name, directory / name)
    return directory


def pairs_of(texts: list[str], count: int) -> list[Pair]:
    """Texts of one to LONGEST entries, and the first headword of each as its query."""
    entries, pairs = iter(texts), list[Pair]()
    for i in range(count):
        text = " ".join(islice(entries, 1 + i % LONGEST))
        pairs.append((f"what is {text.partition(':')[0]}?", text))
    return pairs


def computed_by_us(model: Reranker, counts: list[int]) -> int:
    """Tokens that the device computes, padding included."""
    packer = Packer(model.max_seq_length, model.runner.token_budget)
    return sum(batch.rows * batch.length for batch in [*packer.add(0, counts), *packer.flush(0)])


def computed_by_peer(pairs: list[Pair], counts: list[int]) -> int:
    """The same of batches of 32, longest first, by characters as CrossEncoder sorts."""
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))
    batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
    return sum(len(batch) * max(counts[i] for i in batch) for batch in batches)


def measure(directory: Path, pairs: list[Pair], dtype: str, repeats: int) -> list[list[object]]:
    """A row for each system."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads())
    options: dict[str, Any] = {"local_files_only": True, "model_kwargs": {"dtype": getattr(torch, dtype)}}
    peer, model = (
        CrossEncoder(str(directory), device="cpu", **options),
        Reranker.from_pretrained(directory, dtype=dtype),
    )
    results: dict[str, np.ndarray] = {}

    def ours() -> None:
        results["stella-jax"] = model.predict(pairs, activation="none")

    def theirs() -> None:
        scores = peer.predict(pairs, batch_size=BATCH_SIZE, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        results["CrossEncoder"] = np.asarray(scores)

    median = interleaved({"stella-jax": ours, "CrossEncoder": theirs}, repeats)
    difference = np.abs(results["stella-jax"] - results["CrossEncoder"]).max()
    if not difference <= SAME[dtype]:
        raise SystemExit(f"CrossEncoder gives other scores: {difference:.1e} apart, {SAME[dtype]} is the most.")
    counts = [len(each.ids) for each in model.tokenize(pairs)]
    tokens = sum(counts)
    computed = {"stella-jax": computed_by_us(model, counts), "CrossEncoder": computed_by_peer(pairs, counts)}
    return [
        [dtype, len(pairs), tokens, name, tokens / computed[name], len(pairs) / s, tokens / s, s / median["stella-jax"]]
        for name, s in median.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="keep the random checkpoint here, or find it here")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--dtype", nargs="+", choices=list(SAME), default=["float32"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--out", type=Path, help="append the table to this file")
    options = parser.parse_args()
    pairs = pairs_of(corpus_texts(options.corpus, LONGEST * options.pairs), options.pairs)
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_reranker(options.checkpoint or Path(scratch) / "reranker", options.layers)
        rows = [row for dtype in options.dtype for row in measure(directory, pairs, dtype, options.repeats)]
    publish(f"rerank: a base-size reranker of {options.layers} layers", table(COLUMNS, rows), options.out)


if __name__ == "__main__":
    main()
