"""Mining of hard negatives: embeds the texts by jobs, searches the corpus, and chooses negatives."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from stella_jax.checkpoint.prompts import query_prompt_name
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.job.manifest import read_manifest
from stella_jax.job.options import JobOptions, ModelOptions, RunOptions
from stella_jax.job.run import run_job
from stella_jax.job.vectors import read_vectors
from stella_jax.nearest import nearest
from stella_jax.storage.atomic import replacing
from stella_jax.storage.new_directory import check_destination
from stella_jax.storage.store import open_store
from train.negative_rows import Mined
from train.negative_selection import ANCHORS_PER_SEED, MiningOptions, Negatives, Positives, choose, concatenate
from train.pairs import Pairs, read_pairs
from train.rows_file import check_new_file, write_rows
from train.work_directory import check_work_directory

# Bounds of a block of anchors: its anchors, the numbers in their vectors, and their candidates.
MAX_ANCHORS = 65_536
MAX_NUMBERS = 2**26
MAX_CANDIDATES = 2**24
PAIRS_PER_BLOCK = 65_536
ROW_GROUP_SIZE = 65_536


@dataclass(frozen=True, slots=True)
class MineCommand:
    """A `mine` command.

    Attributes:
      pairs, corpus, columns: as in `read_pairs`.
      out: the file to write, .jsonl, .csv or .parquet by its name.
      model: the model that embeds the texts.
      options: which candidates become negatives.
      work: a directory to keep texts, embeddings and nearest rows in; None is a temporary one beside `out`.
      anchor_prompt, corpus_prompt: names of prompts, or "none"; None is the model's for queries and for documents.
      output_format: one of `negative_rows.OUTPUT_FORMATS`.
      output_scores: as in `Mined.rows`.
    """

    pairs: str
    out: str
    model: ModelOptions = field(default_factory=ModelOptions)
    options: MiningOptions = field(default_factory=MiningOptions)
    corpus: str | None = None
    columns: Sequence[str] = ("anchor", "positive", "text")
    work: str | None = None
    anchor_prompt: str | None = None
    corpus_prompt: str | None = None
    output_format: str = "triplet"
    output_scores: bool = False


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors, as memory maps or arrays.

    Attributes:
      corpus: (n, E) float32.
      anchors: (m, E) float32, which contains the anchors' vectors.
      anchor_rows: each anchor's row of `anchors`.
    """

    corpus: np.ndarray
    anchors: np.ndarray
    anchor_rows: np.ndarray


def mine(command: MineCommand, run: RunOptions | None = None) -> Mined:
    """Mines negatives and writes them to `out`; resumes from the working directory of an interrupted call.

    Raises:
      StellaError: the file exists or its type is unsupported; pairs, corpus or model cannot be used; there are fewer
        candidates than requested; the working directory has other texts, or files of others that would be removed; or
        no negatives are left.
    """
    out, run = check_destination(command.out), run or RunOptions()
    work = check_destination(command.work or f"{out}.work")
    if check_new_file(out).suffix == ".csv" and command.output_format == "labeled-list":
        raise StellaError(f"{out}: rows of labeled-list have lists of texts; choose .jsonl or .parquet.")
    if command.work is None:
        check_work_directory(work)
    pairs = read_pairs(command.pairs, command.corpus, command.columns)
    _check_candidates(command, pairs)
    model = command.model.open()
    assert isinstance(model, Stella)  # ModelOptions of a reranker are for `score`
    vectors, key = _embed(command, pairs, model, work, run)
    mined = find_negatives(pairs, vectors, command.options, work / f"nearest-{key}", run.show == "bar")
    rows = mined.rows(command.output_format, command.output_scores)
    if not mined.negatives.counts.any() or (first := next(rows, None)) is None:
        raise StellaError(f"{command.pairs}: {mined.shortage()}.")
    write_rows(out, chain([first], rows))
    if command.work is None:
        shutil.rmtree(work)
    return mined


def find_negatives(
    pairs: Pairs, vectors: Vectors, options: MiningOptions, cache: Path | None = None, show: bool = False
) -> Mined:
    """Finds the negatives of all anchors.

    Args:
      cache: directory that keeps the nearest rows of blocks of anchors.
      show: whether to show a bar on stderr.
    """
    last, k = options.last_rank(pairs.most_positives), options.last_rank(pairs.most_positives) + pairs.most_positives
    size = min(MAX_ANCHORS, MAX_CANDIDATES // k, MAX_NUMBERS // vectors.corpus.shape[1])
    size = max(1, size // ANCHORS_PER_SEED) * ANCHORS_PER_SEED
    total = len(pairs.anchors) * len(pairs.corpus)
    found: list[tuple[np.ndarray, Negatives]] = []
    with tqdm(total=total, unit=" products", unit_scale=True, desc="searching", disable=not show) as bar:
        for first in range(0, len(pairs.anchors), size):
            block = slice(first, first + size)
            path = cache and cache / f"{k}-{first}.npz"
            scores, rows = _cached(path, lambda block=block: _nearest(vectors, block, k, bar.update))
            bar.update((first + len(rows)) * len(pairs.corpus) - bar.n)  # if they came from the cache
            positives = _positives(pairs, vectors, block)
            found.append((positives.scores, choose(scores, rows, positives, options, last, first)))
    scores = np.concatenate([scores for scores, _ in found])
    positives = Positives(pairs.anchor_of, pairs.positive_of, scores)
    return Mined(pairs, positives, concatenate([each for _, each in found]), options)


def _nearest(vectors: Vectors, block: slice, k: int, on_block: Callable[[int], Any]) -> tuple[np.ndarray, np.ndarray]:
    return nearest(vectors.anchors[vectors.anchor_rows[block]], vectors.corpus, k, on_block)


def _positives(pairs: Pairs, vectors: Vectors, block: slice) -> Positives:
    """The pairs of a block of anchors, indexed from its first, with their scores."""
    start, stop = np.searchsorted(pairs.anchor_of, [block.start, block.stop])
    anchors, rows = pairs.anchor_of[start:stop], pairs.positive_of[start:stop]
    scores = np.empty(len(rows), np.float32)
    for i in range(0, len(rows), PAIRS_PER_BLOCK):
        some = slice(i, i + PAIRS_PER_BLOCK)
        both = vectors.anchors[vectors.anchor_rows[anchors[some]]], vectors.corpus[rows[some]]
        scores[some] = np.einsum("pe,pe->p", *both)
    return Positives(anchors - block.start, rows, scores)


def _cached(path: Path | None, compute: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows from a file; if it does not exist, computes and writes them."""
    if path is None:
        return compute()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        scores, rows = compute()
        with replacing(path) as file:
            np.savez(file, scores=scores, rows=rows)
    with np.load(path) as arrays:
        return arrays["scores"], arrays["rows"]


def _embed(command: MineCommand, pairs: Pairs, model: Stella, work: Path, run: RunOptions) -> tuple[Vectors, str]:
    """The vectors of all distinct texts, and a key of what they depend on."""
    query = query_prompt_name(model.prompts) or "none" if command.anchor_prompt is None else command.anchor_prompt
    jobs = JobOptions(prompt=query, normalize=True), JobOptions(prompt=command.corpus_prompt, normalize=True)
    embed = partial(_embed_texts, work=work, model=model, origin=command.model.origin(), run=run)
    if jobs[0].document_prompt(model) == jobs[1].document_prompt(model):
        texts = dict(zip(dict.fromkeys([*pairs.corpus, *pairs.anchors]), count()))
        vectors, key = embed("texts", list(texts), jobs[1])
        rows = np.array([texts[anchor] for anchor in pairs.anchors])
        return Vectors(vectors[: len(pairs.corpus)], vectors, rows), key
    corpus, corpus_key = embed("corpus", pairs.corpus, jobs[1])
    anchors, key = embed("anchors", pairs.anchors, jobs[0])
    return Vectors(corpus, anchors, np.arange(len(anchors))), f"{corpus_key}-{key}"


def _embed_texts(
    name: str,
    texts: list[str],
    options: JobOptions,
    *,
    work: Path,
    model: Stella,
    origin: dict[str, Any],
    run: RunOptions,
) -> tuple[np.ndarray, str]:
    """Embeds texts by a job; returns the embeddings (texts, E) as a memory map, and the job's key."""
    source, out = work / f"{name}.parquet", work / name
    _write_texts(source, texts)
    run_job(model, origin, [source], out, options, run)
    store = open_store(out)
    manifest = read_manifest(store)
    if manifest["totals"]["rows"] != len(texts):
        lost = len(texts) - manifest["totals"]["rows"]
        raise StellaError(f"{out}: {lost} texts could not be embedded; remove those in {out}/_job/rejected.jsonl.")
    path = work / f"{name}-{manifest['job']}.npy"
    if not path.exists():
        with replacing(path) as file:
            shape = (len(texts), model.head_dims[0])
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for part in range(len(manifest["parts"])):
                for _, vectors in read_vectors(store, manifest, part, shape[1]):
                    file.write(vectors.astype("<f4").tobytes())
    return np.load(path, mmap_mode="r"), manifest["job"]


def _write_texts(path: Path, texts: list[str]) -> None:
    """Writes the input of a job, unless it is there already.

    Raises:
      StellaError: the file has other texts.
    """
    starts = range(0, len(texts), ROW_GROUP_SIZE)
    chunks = [pa.array(texts[i : i + ROW_GROUP_SIZE], pa.string()) for i in starts]
    table = pa.table({"text": pa.chunked_array(chunks)})
    if path.exists():
        if not pq.read_table(path).equals(table):
            raise StellaError(f"{path}: has the texts of other pairs; remove {path.parent} or use another --work.")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        pq.write_table(table, file, row_group_size=ROW_GROUP_SIZE, compression="zstd")


def _check_candidates(command: MineCommand, pairs: Pairs) -> None:
    """Refuses options that need more candidates than there are."""
    options, candidates = command.options, len(pairs.corpus)
    asked = options.range_max or options.range_min + options.num_negatives
    name = "range_max" if options.range_max else "range_min + num_negatives"
    if asked > candidates:
        source = command.corpus or command.pairs
        raise StellaError(f"{source}: {candidates} distinct candidates, fewer than {name} = {asked}; lower it.")
