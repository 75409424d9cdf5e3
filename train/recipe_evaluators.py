"""A recipe's evaluators: files of texts with labels, and the scores that embeddings reach on them.

Each is called with an `Embed` and returns its scores; texts are embedded in blocks, so that memory stays bounded.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stella_jax.errors import StellaError
from stella_jax.readers.columns import ID, NUMBER, TEXT, Column, Kind, RawRow, RowError, is_list
from stella_jax.readers.decompress import open_bytes
from stella_jax.readers.records import read_rows
from stella_jax.storage.location import Location, locate, require_file
from train.embedding_scores import BLOCK, Scores, Similarities, accuracy, correlation, pairwise, reranking, retrieval
from train.sections import EvaluatorSection

# (texts, "query" or "document") -> embeddings (n, dim).
Embed = Callable[[Sequence[str], str], np.ndarray]

QUERY, DOCUMENT = "query", "document"

EXTENSIONS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".parquet")


def _is_texts(kind: Any) -> bool:
    return TEXT.is_arrow(kind) or (is_list(kind) and TEXT.is_arrow(kind.value_type))


TEXTS = Kind("a string or a list of strings", (str, list, np.ndarray), "string or list of strings", _is_texts)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Queries, a corpus, and the indices of each query's relevant texts, see `embedding_scores.retrieval`."""

    queries: list[str]
    corpus: list[str]
    relevant: list[list[int]]
    measure: str
    k: tuple[int, ...]

    @property
    def best(self) -> str:
        return f"{self.measure}_ndcg@{max(self.k or (10,))}"

    def __call__(self, embed: Embed) -> Scores:
        cutoffs = {"at": self.k, "mrr_at": self.k, "ndcg_at": self.k, "map_at": self.k} if self.k else {}
        corpus = (embed(texts, DOCUMENT) for texts in _blocks(self.corpus))
        return retrieval(embed(self.queries, QUERY), corpus, self.relevant, self.measure, **cutoffs)


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs of texts with a gold score of their similarity."""

    first: list[str]
    second: list[str]
    gold: list[float]

    best = "spearman_cosine"

    def __call__(self, embed: Embed) -> Scores:
        [similarities] = _similarities(embed, self.first, self.second, prompt=QUERY)
        return correlation(similarities, self.gold)


@dataclass(frozen=True, slots=True)
class Triplets:
    """Anchors, each with a positive and a negative."""

    anchors: list[str]
    positives: list[str]
    negatives: list[str]

    best = "cosine_accuracy"

    def __call__(self, embed: Embed) -> Scores:
        nearer, farther = _similarities(embed, self.anchors, self.positives, self.negatives, prompt=DOCUMENT)
        return accuracy(nearer, farther)


@dataclass(frozen=True, slots=True)
class Reranking:
    """Queries, each with positives and negatives to rank."""

    queries: list[str]
    positives: list[list[str]]
    negatives: list[list[str]]
    measure: str
    k: tuple[int, ...]

    @property
    def best(self) -> str:
        return f"ndcg@{max(self.k or (10,))}"

    def __call__(self, embed: Embed) -> Scores:
        return reranking(self._embedded(embed), self.k or (10,), self.measure)

    def _embedded(self, embed: Embed) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        queries = embed(self.queries, QUERY)
        sizes = np.array([len(p) + len(n) for p, n in zip(self.positives, self.negatives, strict=True)])
        block = np.cumsum(sizes) // BLOCK
        for number in dict.fromkeys(block):
            rows = np.flatnonzero(block == number)
            texts = embed([t for row in rows for t in (*self.positives[row], *self.negatives[row])], DOCUMENT)
            ends = np.cumsum(sizes[rows])
            for row, end in zip(rows, ends, strict=True):
                yield queries[row], texts[end - sizes[row] : end], len(self.positives[row])


Evaluator = Retrieval | ScoredPairs | Triplets | Reranking


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK))


def _similarities(embed: Embed, texts: Sequence[str], *others: Sequence[str], prompt: str) -> list[Similarities]:
    """The similarities of texts, embedded as queries, with each of the others, block by block."""
    found: list[list[Similarities]] = [[] for _ in others]
    for first, *rest in zip(_blocks(texts), *map(_blocks, others), strict=True):
        queries, *further = embed(first, QUERY), *(embed(each, prompt) for each in rest)
        for blocks, each in zip(found, further, strict=True):
            blocks.append(pairwise(queries, each))
    return [{name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]} for blocks in found]


def read_evaluator(section: EvaluatorSection) -> Evaluator:
    """Reads the evaluator of a recipe's section.

    Raises:
      StellaError: a file is missing or lacks a column; or names a faulty row.
    """
    location = locate(section.path)
    match section.kind:
        case "retrieval":
            return _read_retrieval(section)
        case "pairs":
            first, second, gold = _read(location, Column("sentence1"), Column("sentence2"), Column("score", NUMBER))
            return ScoredPairs(first, second, [float(score) for score in gold])
        case "triplets":
            return Triplets(*_read(location, Column("anchor"), Column("positive"), Column("negative")))
    query, positive, negative = _read(location, Column("query"), Column("positive", TEXTS), Column("negative", TEXTS))
    rows = [(q, _as_list(p), _as_list(n)) for q, p, n in zip(query, positive, negative, strict=True)]
    rows = [(q, p, n) for q, p, n in rows if p and n]  # as sentence-transformers does
    if not rows:
        raise StellaError(f"{location}: no query has a positive and a negative.")
    queries, positives, negatives = map(list, zip(*rows, strict=True))
    return Reranking(queries, positives, negatives, section.measure, section.k)


def _read_retrieval(section: EvaluatorSection) -> Retrieval:
    """Reads BEIR's layout: queries and corpus with `_id`, and qrels of both ids and a score, relevant above 0."""
    queries = _by_id(_find(section.path, "queries"))
    corpus = _by_id(_find(section.path, "corpus"), Column("title", needed=False))
    places = {name: place for place, name in enumerate(sorted(corpus))}  # sentence-transformers' order of ties
    location = locate(f"{section.path}/{section.qrels}")
    relevant: dict[str, list[int]] = {}
    unknown: list[str] = []
    for query, text in _qrels(location):
        if query in queries and text in places:
            relevant.setdefault(query, []).append(places[text])
        else:
            unknown.append(text if query in queries else query)
    if unknown:
        raise StellaError(
            f"{location}: {len(unknown)} rows have ids that are not in queries or corpus, first {unknown[0]!r}; add "
            "these texts or remove the rows."
        )
    if not relevant:
        raise StellaError(f"{location}: no query has a relevant text (a score above 0).")
    texts = [corpus[name] for name in places]
    return Retrieval([queries[q] for q in relevant], texts, [*relevant.values()], section.measure, section.k)


def _find(folder: str, stem: str) -> Location:
    for extension in EXTENSIONS:
        location = locate(f"{folder}/{stem}{extension}")
        if location.kind() == "file":
            return location
    raise StellaError(f"{folder}/{stem}.jsonl: file not found; retrieval needs queries, corpus and qrels.")


def _by_id(location: Location, *further: Column) -> dict[str, str]:
    """`_id` -> title and text, of a file's rows."""
    ids, texts, *titles = _read(location, Column("_id", ID), Column("text"), *further)
    if titles:
        texts = [f"{title} {text}".strip() for title, text in zip(titles[0], texts, strict=True)]
    found = dict(zip(map(str, ids), texts, strict=True))
    if len(found) < len(texts):
        raise StellaError(f"{location}: {len(texts) - len(found)} duplicate _ids; make them unique.")
    return found


def _qrels(location: Location) -> Iterator[tuple[str, str]]:
    """Ids of queries and of their relevant texts."""
    if location.kind() != "file":
        raise StellaError(f"{location}: file not found; add it, with tab-separated query-id, corpus-id and score.")
    with open_bytes(location) as file:
        for number, line in enumerate(file, 1):
            values = line.decode(errors="replace").rstrip("\r\n").split("\t")
            try:
                query, text, score = values
                relevant = float(score) > 0
            except ValueError:
                if number == 1 or not line.strip():  # the header
                    continue
                raise StellaError(
                    f"{location}: row {number}: not a tab-separated query id, corpus id and score; fix it."
                ) from None
            if relevant:
                yield query, text


def _read(location: Location, *columns: Column) -> list[list[Any]]:
    """The values of each column; "" where an optional one is missing."""
    require_file(location)
    rows = []
    for number, row in read_rows(location, columns):
        try:
            rows.append([_value(column, row) for column in columns])
        except RowError as error:
            raise StellaError(f"{location}: row {number}: {error}; fix or remove it.") from None
    if not rows:
        raise StellaError(f"{location}: no rows; add some.")
    return [list(values) for values in zip(*rows, strict=True)]


def _value(column: Column, row: RawRow | RowError) -> Any:
    if isinstance(row, RowError):
        raise row
    if not column.needed and row.get(column.name) is None:
        return ""
    value = column.value(row)
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, list) and not all(isinstance(text, str) for text in value):
        raise RowError(f"{column.name} is {json.dumps(value, default=repr)[:40]}, not {column.kind.value}")
    if column.kind is NUMBER and not np.isfinite(value):
        raise RowError(f"{column.name} is {value}, not a finite number")
    return value


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def identity_of(section: EvaluatorSection, evaluator: Evaluator) -> dict[str, Any]:
    """All that decides its scores, as JSON values: the settings, and a hash of its rows."""
    texts = [getattr(evaluator, name) for name in evaluator.__slots__]
    sha256 = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    settings = {key: getattr(section, key) for key in ("kind", "split", "measure", "prompts")}
    return settings | {"k": list(section.k), "sha256": sha256}


def prompts_of(section: EvaluatorSection, prompts: Mapping[str, str]) -> dict[str, str]:
    """Prompts of queries and documents: the section's own, else those of training, except for pairs."""
    columns = {} if section.kind == "pairs" else {QUERY: "anchor", DOCUMENT: "positive"}
    return {kind: prompts.get(column, "") for kind, column in columns.items()} | section.prompts
