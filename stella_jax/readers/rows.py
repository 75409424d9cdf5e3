"""Rows of a job's inputs: a text with its id, or the reason why the row is rejected."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from stella_jax.errors import StellaError
from stella_jax.readers.columns import ID, Column, RawRow, RowError, kind_of_kept
from stella_jax.tokenizer.pair_tokenizer import Pair
from stella_jax.tokenizer.tokenizer import check_text

# Columns of a part that are not copied from the input; the prefix of embedding columns, and the score column.
OWN_COLUMNS = ("id", "n_tokens", "truncated")
EMBEDDING = "embedding"
SCORE = "score"


class Row(NamedTuple):
    """A text to embed, or a query and a text to score.

    Attributes:
      input: name of the input file.
      number: of the line or record, from 1, or its byte offset.
      kept: the values to copy, in the order of `RowFields.keep` (see `Column.kept_value`).
    """

    input: str
    number: int
    id: str
    text: str | Pair
    kept: tuple[str | pa.Array | None, ...] = ()

    @property
    def characters(self) -> int:
        return len(self.text) if isinstance(self.text, str) else sum(map(len, self.text))


class Rejected(NamedTuple):
    """A row that cannot be embedded; `id` is None if it has no valid one."""

    input: str
    number: int
    id: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class RowFields:
    """The fields of a row that are read.

    Attributes:
      text: the field of the text.
      id: the field of the id; None is "id" where a row has that field, else the row's input and number are its id.
      keep: fields that are copied into the parts.
      kept_types: their types in the parts, once they are known (see `kept_columns.resolve_types`).
      query: the field of the query that belongs to the text, in rows to score.

    Raises:
      StellaError: a field to keep is named twice, or has the name of a column that parts have anyway.
    """

    text: str = "text"
    id: str | None = None
    keep: tuple[str, ...] = ()
    kept_types: tuple[pa.DataType, ...] = ()
    query: str | None = None

    columns: tuple[Column, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        for name in self.keep:
            self._check_kept(name)
        key = Column(self.id or "id", ID, needed=self.id is not None)
        kinds = map(kind_of_kept, self.kept_types or [None] * len(self.keep))
        kept = map(Column, self.keep, kinds)
        object.__setattr__(self, "columns", (*map(Column, self.read), key, *kept))

    @property
    def read(self) -> tuple[str, ...]:
        """The fields that the model reads: the text, and the query if there is one."""
        return (self.text,) if self.query is None else (self.text, self.query)

    def _check_kept(self, name: str) -> None:
        check_text(name, "--keep")
        if self.keep.count(name) > 1:
            raise StellaError(f"--keep: {name!r} given twice; name it once.")
        if name == self.id:
            raise StellaError(f"--keep: {name!r} is the id, which is written as 'id'; leave it out.")
        # SQL engines ignore case.
        is_computed = name.lower().startswith(EMBEDDING) if self.query is None else name.lower() == SCORE
        if name.lower() in OWN_COLUMNS or is_computed:
            raise StellaError(f"--keep: {name!r} is a column of the output itself; leave it out, or rename the field.")


def make_row(name: str, number: int, position: str, raw: RawRow, fields: RowFields) -> Row | Rejected:
    """The row with these values, or the reason why it is rejected.

    Args:
      name: of the input.
      position: the id of a row without one.
    """
    count = len(fields.read)
    read, (key, *kept) = fields.columns[:count], fields.columns[count:]
    row_id = None
    try:
        row_id = str(key.value(raw)) if key.needed or key.name in raw else position
        if not row_id:
            row_id = None
            raise RowError(f"{key.name} is empty")
        text, *query = (column.value(raw) for column in read)
        content = (query[0], text) if query else text
        return Row(name, number, row_id, content, tuple(column.kept_value(raw) for column in kept))
    except RowError as error:
        return Rejected(name, number, row_id, str(error))
