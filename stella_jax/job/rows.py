"""Rows of a job's inputs: a text with its id, or the reason why there is none."""

import json
from dataclasses import dataclass
from typing import NamedTuple

MISSING = object()

# Records from which one can begin to read: their number (from 0), and how many bytes lie before, which is their offset
# where the format knows offsets. The first is (0, 0).
Marks = list[tuple[int, int]]


class Row(NamedTuple):
    """A text to embed; `number` counts the lines or records of its input from 1."""

    input: str
    number: int
    id: str
    text: str


class Rejected(NamedTuple):
    """A row that cannot be embedded; `id` is None where it has no sound one."""

    input: str
    number: int
    id: str | None
    reason: str


class Cells(NamedTuple):
    """What stands in a row's two fields, unchecked; MISSING where there is nothing."""

    text: object
    id: object


class Fault(Exception):
    """What is wrong with one row, or one field of it; never leaves this package."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row are read.

    With `id` None, a row's field "id" names it, and where there is none, its input and number do.
    """

    text: str = "text"
    id: str | None = None

    @property
    def id_name(self) -> str:
        return self.id or "id"


def make_row(name: str, number: int, cells: Cells, fields: Fields) -> Row | Rejected:
    """The row of these cells, or what is wrong with them; `name` is the input's."""
    row_id = None
    try:
        row_id = f"{name}:{number}" if cells.id is MISSING and fields.id is None else _check_id(cells.id, fields)
        return Row(name, number, row_id, _check_text(cells.text, fields.text))
    except Fault as fault:
        return Rejected(name, number, row_id, str(fault))


def _check_id(value: object, fields: Fields) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    row_id = _check_text(value, fields.id_name, kind="a string or a whole number")
    if not row_id:
        raise Fault(f"{fields.id_name} is empty")
    return row_id


def _check_text(value: object, field: str, kind: str = "a string") -> str:
    if value is MISSING:
        raise Fault(f"{field} is missing")
    if not isinstance(value, str):
        raise Fault(f"{field} is {_shown(value)}, not {kind}")
    if not value.isascii():
        _check_surrogates(value, field)
    return value


def _check_surrogates(value: str, field: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise Fault(f"{field} holds a lone surrogate (U+{code:04X} at character {error.start})") from None


def _shown(value: object) -> str:
    """A value as JSON would write it, which is what the person who wrote the row has before them."""
    shown = json.dumps(value, default=repr)
    return shown if len(shown) <= 40 else shown[:37] + "..."
