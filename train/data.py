"""Training rows: an anchor, a positive and perhaps a negative each, with numbers beside them if wanted."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stella_jax.errors import StellaError
from stella_jax.job.columns import NUMBER, Column, RawRow, RowError, in_json, present
from stella_jax.job.location import Location, locate
from stella_jax.job.records import read_rows
from train.recipe import COLUMNS

SHOWN_FAULTS = 3
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows, column by column.

    Attributes:
      texts: by column, in the order anchor, positive, negative; without negatives where the file has none.
      columns: further columns that were asked for, float32 (rows,) each.
      source: the file.
      sha256: of what the rows hold, in their order.
      numbers: of each row in the file, from 1: lines of JSONL, records of CSV and Parquet.
      skipped: what is wrong with the rows that were left out; "" where none was.
    """

    texts: dict[str, Sequence[str]]
    columns: dict[str, np.ndarray]
    source: str
    sha256: str
    numbers: Sequence[int]
    skipped: str = ""

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Sequence[int] | np.ndarray) -> tuple[list[list[str]], dict[str, np.ndarray]]:
        """The texts of some rows, column by column, and their further columns."""
        texts = [[column[row] for row in rows] for column in self.texts.values()]
        return texts, {name: values[np.asarray(rows, np.int64)] for name, values in self.columns.items()}


def read_dataset(
    path: str | Path, need_negatives: bool = False, columns: Sequence[str] = (), skip_faulty: bool = False
) -> Dataset:
    """The rows of a file or URL: .jsonl or .csv, perhaps .gz, or .parquet.

    Args:
      need_negatives: whether a file without the column `negative` is refused.
      columns: further columns to read, of finite numbers; bools are 0 and 1. All others are ignored.
      skip_faulty: leave out the rows that cannot be trained on.

    Raises:
      StellaError: the file cannot be read, lacks a column, holds no rows, or has rows that cannot be trained on, which
        are named: a row cannot be parsed, a text is missing, empty or no text, a number is missing or not finite, or
        the positive is the anchor or the negative.
    """
    location = locate(path)
    texts = [Column(name, needed=name != "negative") for name in COLUMNS]
    wanted = [*texts, *(Column(name, NUMBER) for name in dict.fromkeys(columns))]
    read, names = _read(location, wanted)
    if names:
        wanted = present(location, wanted, names)
        if need_negatives and "negative" not in names:
            use = 'add it or set loss.name = "multiple_negatives_ranking"'
            raise StellaError(f"{location} has no column 'negative', which the triplet loss needs; {use}.")
    rows: dict[int, list[Any]] = {}
    faults: list[str] = []
    for number, row in read:
        try:
            rows[number] = _values(row, wanted)
        except RowError as error:
            faults.append(f"row {number}: {error}")
    skipped = _first(faults)
    if faults and not skip_faulty:
        raise StellaError(f"{location}: {skipped}. Fix or remove these rows, or set data.skip_faulty = true.")
    if not rows:
        raise StellaError(f"{location} holds no rows{' to train on: ' + skipped if faults else ''}.")
    found = dict(zip((column.name for column in wanted), zip(*rows.values(), strict=True), strict=True))
    numbers = {name: np.array(found.pop(name), np.float32) for name in dict.fromkeys(columns)}
    return dataset_of(list(zip(*found.values(), strict=True)), str(location), list(rows), numbers, skipped)


def dataset_of(
    rows: Sequence[tuple[str, ...]],
    source: str,
    numbers: Sequence[int] = (),
    columns: Mapping[str, np.ndarray] | None = None,
    skipped: str = "",
) -> Dataset:
    """Rows (anchor, positive) or (anchor, positive, negative) as columns; `numbers` are from 1 on by default."""
    texts: dict[str, Sequence[str]] = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=False))
    columns = dict(columns or {})
    return Dataset(texts, columns, source, _sha256(rows, columns), numbers or range(1, len(rows) + 1), skipped)


def _sha256(rows: Sequence[tuple[str, ...]], columns: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(row).encode() + b"\n")
    for name, values in columns.items():
        total.update(json.dumps(name).encode() + b"\n" + values.astype("<f4").tobytes())
    return total.hexdigest()


def _read(location: Location, columns: Sequence[Column]) -> tuple[list[tuple[int, RawRow | RowError]], list[str]]:
    """The rows with their numbers, and the columns that any of them has."""
    if location.kind() != "file":
        raise StellaError(f"{location}: file not found (paths are relative to the working directory).")
    names: dict[str, None] = {}
    rows: list[tuple[int, RawRow | RowError]] = []
    for number, row in read_rows(location, columns):
        if not isinstance(row, RowError):
            names.update(dict.fromkeys(row))
            row = {name: row[name] for name, *_ in columns if name in row}
        rows.append((number, row))
    return rows, list(names)


def _values(row: RawRow | RowError, columns: Sequence[Column]) -> list[Any]:
    """The row's values in the order of the columns; raises RowError where it cannot be trained on."""
    if isinstance(row, RowError):
        raise row
    values = {column.name: column.value(row) for column in columns}
    for name, value in values.items():
        if isinstance(value, str):
            if not value.strip():
                raise RowError(f"{name} is empty")
        elif not abs(value) <= FLOAT32_MAX:
            raise RowError(f"{name} is {in_json(value)}, not a finite number in float32")
    if values["anchor"] == values["positive"]:
        raise RowError("anchor and positive are the same text")
    if values["positive"] == values.get("negative"):
        raise RowError("positive and negative are the same text")
    return list(values.values())


def _first(faults: Sequence[str]) -> str:
    more = f", and {len(faults) - SHOWN_FAULTS} rows more" if len(faults) > SHOWN_FAULTS else ""
    return "; ".join(faults[:SHOWN_FAULTS]) + more
