"""Columns that are read from files, and the types that their values must have."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as arrow

from stella_jax.errors import ErrorWithFields, StellaError, join_words, lone_surrogate, quoted, short_repr

# The unchecked values of a record by column, without columns that it lacks.
RawRow = Mapping[str, Any]


class RowError(Exception):
    """A row, or one of its values, is invalid."""


def _is_string(kind: pa.DataType) -> bool:
    return arrow.is_string(kind) or arrow.is_large_string(kind) or arrow.is_string_view(kind)


def _is_id(kind: pa.DataType) -> bool:
    return _is_string(kind) or arrow.is_integer(kind)


def _is_number(kind: pa.DataType) -> bool:
    return arrow.is_integer(kind) or arrow.is_floating(kind) or arrow.is_boolean(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether the type is a list, of fixed size or not."""
    return arrow.is_list(kind) or arrow.is_large_list(kind) or arrow.is_fixed_size_list(kind)


def _is_numbers(kind: pa.DataType) -> bool:
    return _is_number(kind) or (is_list(kind) and _is_number(kind.value_type))


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a column's values.

    Attributes:
      value, arrow: names of the Python and the Arrow types in errors.
      types: exact Python types: a bool does not count as an int.
      is_arrow: whether an Arrow type fits.
      is_kept: whether values are copied unchecked (see `Column.kept_value`).
    """

    value: str
    types: tuple[type, ...]
    arrow: str
    is_arrow: Callable[[pa.DataType], bool]
    is_kept: bool = False


TEXT = Kind("a string", (str,), "string", _is_string)
ID = Kind("a string or a whole number", (str, int), "string or integer", _is_id)
NUMBER = Kind("a number", (int, float, bool, np.float16), "integer, float or bool", _is_number)
NUMBERS = Kind(
    "a number or a list of numbers",
    (int, float, bool, np.float16, list, np.ndarray),
    "integer, float, bool or a list of one of them",
    _is_numbers,
)


def kept_type(kind: pa.DataType) -> pa.DataType:
    """The type of the copy of a Parquet column: all string types become string, dictionaries are decoded."""
    kind = kind.value_type if arrow.is_dictionary(kind) else kind
    return pa.string() if _is_string(kind) else kind


def kind_of_kept(type: pa.DataType | None = None) -> Kind:
    """The kind of a kept column; with a type, the copy must have that type."""
    return Kind("", (), str(type), lambda found: type is None or kept_type(found) == type, is_kept=True)


class Column(NamedTuple):
    """A column to read; if it is `needed`, a file without it is an error."""

    name: str
    kind: Kind = TEXT
    needed: bool = True

    def value(self, row: RawRow) -> Any:
        """The row's value; raises RowError if it is missing or has the wrong type."""
        if self.name not in row:
            raise RowError(f"{quoted(self.name)} is missing")
        value = row[self.name]
        if type(value) not in self.kind.types:
            raise RowError(f"{quoted(self.name)} is {in_json(value)}, not {self.kind.value}")
        if isinstance(value, str) and not value.isascii():
            self._check_surrogates(value)
        return value

    def kept_value(self, row: RawRow) -> str | pa.Array | None:
        """The row's value to copy: None, a string, or, from a Parquet column that is not text, an array of length one.

        Other JSON values become their JSON text, so that all rows of all files have one type.

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
                raise RowError(f"{quoted(self.name)} holds NaN or Infinity, which JSON does not allow") from None
            except RecursionError:
                raise RowError(f"{quoted(self.name)} is nested too deeply") from None
        if not value.isascii():
            self._check_surrogates(value)
        return value

    def _check_surrogates(self, value: str) -> None:
        if found := lone_surrogate(value):
            raise RowError(f"{quoted(self.name)} holds a {found}")


def in_json(value: object) -> str:
    """A value as JSON, as it stands in the input, shortened."""
    shown = json.dumps(value, default=repr)
    return shown if len(shown) <= 40 else shown[:37] + "..."


class MissingColumnError(ErrorWithFields):
    """A file lacks the column `name`; `why` may say what it is needed for."""

    def __init__(self, location: object, name: str, names: Iterable[str], why: str = ""):
        super().__init__(f"{location}: no column {short_repr(name)}{why}; its columns are {_join_names(names)}.")
        self.location, self.name, self.names = location, name, names


def select_columns(location: object, columns: Iterable[Column], names: Sequence[str]) -> list[Column]:
    """Select the columns that a file with these column names has.

    Raises:
      StellaError: the file has several columns of the same name.
      MissingColumnError: a needed column is missing.
    """
    columns = [column for column in columns if column.needed or column.name in names]
    for column in columns:
        if column.name not in names:
            raise MissingColumnError(location, column.name, names)
        if names.count(column.name) > 1:
            raise StellaError(f"{location}: several columns {column.name!r}; its columns are {_join_names(names)}.")
    return columns


def _join_names(names: Iterable[str]) -> str:
    return join_words(name.encode(errors="replace").decode() for name in names)
