"""Pairs of an anchor and a positive, and the corpus of candidate negatives."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from stella_jax.errors import StellaError
from stella_jax.readers.columns import Column, RawRow, RowError, select_columns
from stella_jax.readers.records import read_rows
from stella_jax.storage.location import locate, require_file
from train.faults import Faults


@dataclass(frozen=True, slots=True)
class Pairs:
    """Distinct texts, and pairs of their indices.

    Attributes:
      anchors: distinct anchors, in the order of the file.
      corpus: distinct candidates, followed by the positives that are not among them.
      anchor_of: (p,) index of each distinct pair's anchor, ascending.
      positive_of: (p,) index of its positive in the corpus.
      most_positives: the largest number of rows of an anchor.
    """

    anchors: list[str]
    corpus: list[str]
    anchor_of: np.ndarray
    positive_of: np.ndarray
    most_positives: int


def read_pairs(
    path: str | Path, corpus: str | Path | None = None, columns: Sequence[str] = ("anchor", "positive", "text")
) -> Pairs:
    """Reads the pairs of a file, whose positives are candidates, and perhaps a corpus of more candidates.

    Args:
      path: .jsonl or .csv (also .gz, .zst), or .parquet.
      corpus: a file of the same types, or .txt; repeated texts count once.
      columns: of the anchor, of the positive, and of the text in `corpus`.

    Raises:
      StellaError: a file cannot be read, lacks a column or has no rows; or names rows without a text or whose anchor
        equals the positive.
    """
    *pair, text = columns
    candidates = [text for (text,) in _texts(corpus, [text])] if corpus else []
    return pairs_of([(anchor, positive) for anchor, positive in _texts(path, pair)], candidates)


def pairs_of(rows: Sequence[tuple[str, str]], candidates: Sequence[str] = ()) -> Pairs:
    """Pairs from at least one row (anchor, positive), with the positives as candidates after the given ones."""
    anchors = dict(zip(dict.fromkeys(row[0] for row in rows), count()))
    texts = dict(zip(dict.fromkeys([*candidates, *(row[1] for row in rows)]), count()))
    numbers = [(anchors[anchor], texts[positive]) for anchor, positive in rows]
    most = int(np.bincount([anchor for anchor, _ in numbers]).max())
    pairs = np.array(list(dict.fromkeys(numbers)), np.int64)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    return Pairs(list(anchors), list(texts), pairs[:, 0], pairs[:, 1], most)


def _texts(path: str | Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The values of these columns in every row."""
    location, columns = locate(path), [Column(name) for name in names]
    require_file(location)
    seen: dict[str, None] = {}
    rows: list[tuple[str, ...]] = []
    faults = Faults()
    for number, row in read_rows(location, columns):
        if not isinstance(row, RowError):
            seen.update(dict.fromkeys(row))
        try:
            rows.append(_values(row, columns))
        except RowError as error:
            faults.add(number, f"row {number}: {error}")
    if seen:
        select_columns(location, columns, list(seen))
    if faults.count:
        raise StellaError(f"{location}: {faults.sentence}; fix or remove these rows.")
    if not rows:
        raise StellaError(f"{location}: no rows; add some.")
    return rows


def _values(row: RawRow | RowError, columns: Sequence[Column]) -> tuple[str, ...]:
    if isinstance(row, RowError):
        raise row
    values = tuple(column.value(row) for column in columns)
    for column, value in zip(columns, values, strict=True):
        if not value.strip():
            raise RowError(f"{column.name} is empty")
    if len(set(values)) < len(values):
        raise RowError("anchor and positive are the same text")
    return values
