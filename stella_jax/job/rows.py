"""Rows of a job's inputs: a text with its id, or the reason why there is none."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stella_jax.job.columns import ID, Column, RawRow, RowError

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


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row are read.

    With `id` None, a row's field "id" names it, and where there is none, its input and number do.
    """

    text: str = "text"
    id: str | None = None

    columns: tuple[Column, Column] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        key = Column(self.id or "id", ID, needed=self.id is not None)
        object.__setattr__(self, "columns", (Column(self.text), key))


def make_row(name: str, number: int, position: str, raw: RawRow, fields: Fields) -> Row | Rejected:
    """The row of these values, or what is wrong with them.

    Args:
      name: of the input.
      position: the id of a row without one.
    """
    text, key = fields.columns
    row_id = None
    try:
        row_id = str(key.value(raw)) if key.needed or key.name in raw else position
        if not row_id:
            row_id = None
            raise RowError(f"{key.name} is empty")
        return Row(name, number, row_id, text.value(raw))
    except RowError as error:
        return Rejected(name, number, row_id, str(error))
