"""Training data: rows of an anchor, and optionally a positive, negatives and columns of numbers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from train.texts import Texts, text_codes


def text_names(count: int) -> list[str]:
    """Names of the first `count` columns of texts: anchor, positive, negative, negative_2, negative_3, ..."""
    return [*("anchor", "positive", "negative"), *(f"negative_{i}" for i in range(2, count))][:count]


@dataclass(frozen=True, slots=True)
class Needs:
    """The columns to read.

    Attributes:
      texts: minimum and maximum number of columns of texts, None for no maximum; further ones are not read.
      columns: required columns of numbers.
      optional: optional columns of numbers.
      ids: whether to read the column `id` if it exists.
      loss: name of the loss that needs them, for errors.
    """

    texts: tuple[int, int | None] = (1, None)
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    ids: bool = False
    loss: str = ""

    def are_met_by(self, dataset: "Dataset") -> bool:
        """Whether the dataset has all required columns."""
        return len(dataset.texts) >= self.texts[0] and set(self.columns) <= dataset.columns.keys()


ANY_ROWS = Needs()


@dataclass(frozen=True)
class Dataset:
    """Rows, stored by column.

    Attributes:
      texts: columns of texts by name, in the order of `text_names`; the same in all rows.
      columns: columns of numbers by name, (rows,) or (rows, n) float32 each.
      source: the file or files, for errors.
      sha256: hash of the rows' values in their order.
      skipped: the faults of the rows that were left out; "" if there were none.
      name: name of the set.
      ids: the rows' ids, if requested and present.
    """

    texts: dict[str, Texts]
    columns: dict[str, np.ndarray]
    source: str
    sha256: str
    skipped: str = ""
    name: str = ""
    ids: Texts | None = None

    def __len__(self) -> int:
        return len(self.texts["anchor"])

    def take(self, rows: Sequence[int] | np.ndarray) -> tuple[list[list[str]], dict[str, np.ndarray]]:
        """Some rows: their columns of texts, and their columns of numbers."""
        texts = [column.take(rows) for column in self.texts.values()]
        return texts, {name: values[np.asarray(rows, np.int64)] for name, values in self.columns.items()}

    @cached_property
    def text_codes(self) -> np.ndarray:
        """(rows, columns) int32: a code for each text, equal for equal texts in any column."""
        return text_codes(list(self.texts.values()))


def with_column(dataset: Dataset, name: str, values: np.ndarray) -> Dataset:
    """The dataset with one more column of numbers."""
    sha256 = with_columns_hashed(hashlib.sha256(dataset.sha256.encode()), {name: values})
    return replace(dataset, columns=dataset.columns | {name: values}, sha256=sha256)


def row_bytes(texts: Sequence[str]) -> bytes:
    """The bytes of a row's texts that are hashed."""
    return json.dumps(texts).encode() + b"\n"


def with_columns_hashed(sha256: Any, columns: Mapping[str, np.ndarray]) -> str:
    """The hash of the texts, updated with the columns of numbers."""
    for name, values in columns.items():
        sha256.update(json.dumps([name, *values.shape[1:]] if values.ndim > 1 else name).encode() + b"\n")
        sha256.update(np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()
