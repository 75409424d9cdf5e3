"""Reader of data sets from files."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from stella_jax.errors import StellaError
from stella_jax.readers.columns import (
    ID,
    NUMBERS,
    TEXT,
    Column,
    MissingColumnError,
    RawRow,
    RowError,
    in_json,
    select_columns,
)
from stella_jax.readers.expand import expand
from stella_jax.readers.records import read_rows
from stella_jax.storage.location import Location, file_not_found, locate
from stella_jax.storage.patterns import is_pattern
from train.data import ANY_ROWS, Dataset, Needs, row_bytes, text_names, with_columns_hashed
from train.faults import SHOWN_FAULTS, Faults
from train.texts import TextsBuilder

MAX_TEXTS = 1000  # of a row, its anchor included
ID_COLUMN = "id"
FLOAT32_MAX = float(np.finfo(np.float32).max)


def read_dataset(
    paths: str | Path | Sequence[str | Path],
    needs: Needs = ANY_ROWS,
    *,
    renamed: Mapping[str, str] | None = None,
    max_rows: int | None = None,
    skip_faulty: bool = False,
    name: str = "",
) -> Dataset:
    """Reads rows from .jsonl, .csv or .parquet files, which may be compressed.

    Args:
      paths: paths and URLs; a pattern or directory stands for its files.
      needs: the columns to read; others are ignored. A column of numbers has finite numbers (bools are 0 and 1), or
        lists of them, equally long in all rows.
      renamed: column -> its name in the files.
      max_rows: read only so many rows from the start.
      skip_faulty: leave faulty rows out instead of raising.
      name: of the set.

    Raises:
      StellaError: a file cannot be read, lacks a column or has no rows; or names the faulty rows. A row is faulty if it
        cannot be parsed, a text is missing, empty or not a string, a number is missing or not finite, or its positive
        equals its anchor or a negative (in rows without a score or label).
    """
    files = _files([paths] if isinstance(paths, str | Path) else paths)
    source = str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    reader = _Reader(source, needs, renamed or {})
    try:
        for file in files:
            reader.read(file, max_rows, f"{file}: " if len(files) > 1 else "")
        return reader.finish(skip_faulty, name)
    except MissingColumnError as error:
        raise reader.explained(error) from None


def _files(paths: Sequence[str | Path]) -> list[Location]:
    for location in map(locate, paths):
        if location.kind() is None and not is_pattern(location.given):
            raise file_not_found(location)
    return expand(paths)


class _Numbers:
    """Builder of a column of numbers."""

    def __init__(self, name: str):
        self.shape: tuple[int, ...] = ()
        self._name, self._values = name, array("f")

    def checked(self, value: Any) -> np.ndarray:
        """A row's value as float32; raises RowError if it is not numeric, or has another length than earlier rows."""
        try:
            found = np.asarray(value)
        except ValueError:  # lists of unequal length in it
            found = np.asarray(value, object)
        is_number = found.dtype.kind in "biuf" and found.ndim <= 1 and found.size
        if not is_number or not (np.abs(found.astype(np.float64)) <= FLOAT32_MAX).all():
            what = "a list of finite numbers" if found.ndim else "a finite number"
            raise RowError(f"{self._name} is {in_json(found.tolist())}, not {what} in float32")
        if self._values and found.shape != self.shape:
            raise RowError(f"{self._name} is {_numbers(found.shape)}, but {_numbers(self.shape)} in earlier rows")
        return found.astype(np.float32)

    def append(self, value: np.ndarray) -> None:
        self.shape = value.shape
        self._values.frombytes(value.tobytes())

    def finish(self) -> np.ndarray:
        return np.frombuffer(self._values, np.float32).reshape(-1, *self.shape)


def _numbers(shape: tuple[int, ...]) -> str:
    return f"a list of {shape[0]}" if shape else "one number"


class _Reader:
    """Collects the rows of files into columns, with one copy in memory."""

    def __init__(self, source: str, needs: Needs, renamed: Mapping[str, str]):
        self._source, self._needs = source, needs
        least, most = needs.texts
        texts = text_names(min(most or MAX_TEXTS, MAX_TEXTS))
        self._needed = {*texts[:least], *needs.columns}
        kinds = dict.fromkeys(texts, TEXT) | dict.fromkeys((*needs.columns, *needs.optional), NUMBERS)
        kinds |= {ID_COLUMN: ID} if needs.ids else {}
        # All columns that may be read, by our names, in the dataset's order.
        self._columns = {
            name: Column(renamed.get(name, name), kind, name in self._needed) for name, kind in kinds.items()
        }
        self._by_file_name = {column.name: name for name, column in self._columns.items()}
        # Equal texts in a row are fine if the row has a score of their similarity.
        self._distinct = not {"score", "label"} & kinds.keys()
        self._names: dict[str, None] = {}
        self._order = 0
        self.faults = Faults()
        self._start(self._needed)

    def _start(self, names: Set[str]) -> None:
        """Starts with no rows of these columns."""
        self._builders: dict[str, Any] = {
            name: (_Numbers if column.kind == NUMBERS else TextsBuilder)(column.name)
            for name, column in self._columns.items()
            if name in names
        }
        self._sha256 = hashlib.sha256()
        self._count, self._first = 0, []

    def read(self, file: Location, max_rows: int | None, prefix: str) -> None:
        """Adds the rows of a file, up to `max_rows` in all; `prefix` precedes their numbers in errors."""
        if self._count == max_rows:
            return
        for number, row in read_rows(file, list(self._columns.values())):
            self._order += 1
            where = f"{prefix}row {number}"
            try:
                self._add(row, where)
            except RowError as error:
                self.faults.add(self._order, f"{where}: {error}")
            if self._count == max_rows:
                return

    def _add(self, row: RawRow | RowError, where: str) -> None:
        if isinstance(row, RowError):
            raise row
        self._names.update(dict.fromkeys(row))
        more = {name for key in row if (name := self._by_file_name.get(key)) and name not in self._builders}
        if more:
            self._extend(more)
        values = {name: builder.checked(self._columns[name].value(row)) for name, builder in self._builders.items()}
        texts = {name: value for name, value in values.items() if self._columns[name].kind == TEXT}
        if self._distinct:
            _check_distinct(texts)
        for name, value in values.items():
            self._builders[name].append(value)
        self._sha256.update(row_bytes(list(texts.values())))
        self._count += 1
        self._first += [(self._order, where)] if self._count <= SHOWN_FAULTS else []

    def _extend(self, names: Set[str]) -> None:
        """Adds columns; all rows so far become faulty, as they lack them."""
        missing = next(column.name for name, column in self._columns.items() if name in names)
        for order, where in self._first:
            self.faults.add(order, f"{where}: {missing} is missing")
        self.faults.count += self._count - len(self._first)
        self._start(self._builders.keys() | names)

    def finish(self, skip_faulty: bool, name: str) -> Dataset:
        """The dataset of all rows read; raises as `read_dataset`."""
        faults, sentence = self.faults.count, self.faults.sentence
        if self._names:
            needed = [column for column in self._columns.values() if column.needed]
            select_columns(self._source, needed, list(self._names))
        texts = [name for name in self._builders if self._columns[name].kind == TEXT]
        lacking = next((name for name in text_names(len(texts)) if name not in texts), None)
        if lacking:
            raise StellaError(
                f"{self._source}: has the column {texts[-1]!r} but not {lacking!r}; number the negatives consecutively."
            )
        if faults and not skip_faulty:
            raise StellaError(f"{self._source}: {sentence}; fix or remove these rows, or set data.skip_faulty = true.")
        if not self._count:
            raise StellaError(f"{self._source}: no rows{' to train on: ' + sentence if faults else ''}.")
        found: dict[str, Any] = {name: builder.finish() for name, builder in self._builders.items()}
        ids = found.pop(ID_COLUMN, None)
        by_text = {name: found.pop(name) for name in texts}
        return Dataset(by_text, found, self._source, with_columns_hashed(self._sha256, found), sentence, name, ids)

    def explained(self, error: MissingColumnError) -> MissingColumnError:
        """The error with the reason why the column is required."""
        names = {name for name in self._needed if self._columns[name].name == error.name}
        why = f" for {min(names)!r}" if names and error.name not in names else ""
        why += f", which loss {self._needs.loss!r} needs" if names and self._needs.loss else ""
        return MissingColumnError(error.location, error.name, error.names, why)


def _check_distinct(texts: Mapping[str, str]) -> None:
    """Raises RowError if the positive equals the anchor or a negative."""
    positive = texts.get("positive")
    if texts["anchor"] == positive:
        raise RowError("anchor and positive are the same text")
    for name, text in texts.items():
        if name.startswith("negative") and text == positive:
            raise RowError(f"positive and {name} are the same text")
