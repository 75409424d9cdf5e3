"""Columns that are read from the records of a file, and what their values must be."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as arrow

from stella_jax.errors import StellaError, join_words, quoted

# The values of one record by column, unchecked; a column that the record lacks is missing.
RawRow = Mapping[str, Any]


class RowError(Exception):
    """What is wrong with one row, or one value of it."""


def _is_string(kind: pa.DataType) -> bool:
    return arrow.is_string(kind) or arrow.is_large_string(kind) or arrow.is_string_view(kind)


def _is_id(kind: pa.DataType) -> bool:
    return _is_string(kind) or arrow.is_integer(kind)


def _is_number(kind: pa.DataType) -> bool:
    return arrow.is_integer(kind) or arrow.is_floating(kind) or arrow.is_boolean(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists, of a fixed size or not."""
    return arrow.is_list(kind) or arrow.is_large_list(kind) or arrow.is_fixed_size_list(kind)


def _is_numbers(kind: pa.DataType) -> bool:
    return _is_number(kind) or (is_list(kind) and _is_number(kind.value_type))


@dataclass(frozen=True, slots=True)
class Kind:
    """What a column holds.

    Attributes:
      value, arrow: what a value and a Parquet column's type are called in errors.
      types: of values, exactly: a bool is no int.
      is_arrow: whether a Parquet column has a fitting type.
      copied: whether it is copied as it is (see `Column.copy`).
    """

    value: str
    types: tuple[type, ...]
    arrow: str
    is_arrow: Callable[[pa.DataType], bool]
    copied: bool = False


TEXT = Kind("a string", (str,), "string", _is_string)
ID = Kind("a string or a whole number", (str, int), "string or integer", _is_id)
NUMBERS = Kind(
    "a number or a list of numbers",
    (int, float, bool, np.float16, list, np.ndarray),
    "integer, float, bool or a list of one of them",
    _is_numbers,
)


def copied_type(kind: pa.DataType) -> pa.DataType:
    """The type that a Parquet column has as a copy: strings of all types are strings, dictionaries are dissolved."""
    kind = kind.value_type if arrow.is_dictionary(kind) else kind
    return pa.string() if _is_string(kind) else kind


def copied_kind(type: pa.DataType | None = None) -> Kind:
    """Of a column that is copied: of this type as a copy, or of any."""
    return Kind("", (), str(type), lambda found: type is None or copied_type(found) == type, copied=True)


class Column(NamedTuple):
    """A column to read; a file without it is refused if it is `needed`."""

    name: str
    kind: Kind = TEXT
    needed: bool = True

    def value(self, row: RawRow) -> Any:
        """The row's value; raises RowError where it is missing or of another kind."""
        if self.name not in row:
            raise RowError(f"{quoted(self.name)} is missing")
        value = row[self.name]
        if type(value) not in self.kind.types:
            raise RowError(f"{quoted(self.name)} is {in_json(value)}, not {self.kind.value}")
        if isinstance(value, str) and not value.isascii():
            self._check_surrogates(value)
        return value

    def copy(self, row: RawRow) -> str | pa.Array | None:
        """The row's value for a copy: a string, an array of one value from a Parquet column of another type, or None.

        Other values of JSON become their JSON text, so that all rows of all files agree on a type.

        Raises:
          RowError: it cannot be written as UTF-8 or JSON.
        """
        value = row.get(self.name)
        if value is None or isinstance(value, pa.Array):
            return value
        if not isinstance(value, str):
            try:
                value = json.dumps(value, ensure_ascii=False, allow_nan=False)
            except ValueError:
                raise RowError(f"{quoted(self.name)} holds NaN or Infinity, which JSON lacks") from None
            except RecursionError:
                raise RowError(f"{quoted(self.name)} is nested too deeply") from None
        if not value.isascii():
            self._check_surrogates(value)
        return value

    def _check_surrogates(self, value: str) -> None:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            raise RowError(
                f"{quoted(self.name)} holds a lone surrogate (U+{code:04X} at character {error.start})"
            ) from None


def in_json(value: object) -> str:
    """A value as JSON would write it, which is what the person who wrote the row has before them, cut."""
    shown = json.dumps(value, default=repr)
    return shown if len(shown) <= 40 else shown[:37] + "..."


class MissingColumnError(StellaError):
    """A file lacks the column `name`; `why` may say what needs it."""

    def __init__(self, location: object, name: str, names: Iterable[str], why: str = ""):
        super().__init__(f"{location} has no column {name!r}{why}; its columns are {_shown(names)}.")
        self.location, self.name, self.names = location, name, names


def present(location: object, columns: Iterable[Column], names: Sequence[str]) -> list[Column]:
    """The columns that a file with these column names has.

    Raises:
      StellaError: one is there more than once.
      MissingColumnError: one is not there and needed.
    """
    columns = [column for column in columns if column.needed or column.name in names]
    for column in columns:
        if column.name not in names:
            raise MissingColumnError(location, column.name, names)
        if names.count(column.name) > 1:
            raise StellaError(f"{location} has more than one column {column.name!r}; its columns are {_shown(names)}.")
    return columns


def _shown(names: Iterable[str]) -> str:
    return join_words(name.encode(errors="replace").decode() for name in names)
