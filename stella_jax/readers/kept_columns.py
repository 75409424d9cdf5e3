"""Columns that --keep copies from the inputs into the parts; each has one type in all parts of a job."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError
from stella_jax.readers.columns import kept_type, select_columns
from stella_jax.readers.file_types import is_parquet
from stella_jax.readers.parquet_rows import invalid_parquet
from stella_jax.readers.rows import Row, RowFields
from stella_jax.storage.location import Location


def resolve_types(locations: Sequence[Location], fields: RowFields) -> RowFields:
    """The fields with the types of kept columns, which are the first input's and must be the same in all others.

    .parquet files keep their own types. Values of .csv and .jsonl files are written as strings, other JSON values as
    their JSON text; a .jsonl row without the field gets null. Only the first input is opened. Another with different
    types, or without a column, is an error when it is opened, before any of its rows is read.

    Args:
      locations: the job's inputs in order; inputs that were added later come last.

    Raises:
      StellaError: the first input lacks a column, or another is text and the first one's type is not string.
    """
    if not fields.keep:
        return fields
    first = locations[0]
    types = _parquet_types(first, fields) if is_parquet(first.name) else [pa.string()] * len(fields.keep)
    for name, type in zip(fields.keep, types, strict=True):
        text = next((each for each in locations if type != pa.string() and not is_parquet(each.name)), None)
        if text is not None:
            raise StellaError(
                f"{text}: column {name!r} is text here, but {type} in {first}; convert one of them, or leave it out of "
                "--keep."
            )
    return replace(fields, kept_types=tuple(types))


def kept_columns(rows: Sequence[Row], fields: RowFields) -> dict[str, pa.Array]:
    """The kept columns of n rows; `fields` come from `resolve_types`."""
    return {
        name: _column([row.kept[i] for row in rows], type)
        for i, (name, type) in enumerate(zip(fields.keep, fields.kept_types, strict=True))
    }


def _column(values: Sequence[str | pa.Array | None], type: pa.DataType) -> pa.Array:
    if type == pa.string():
        return pa.array(values, type)
    return pa.concat_arrays(values) if values else pa.nulls(0, type)


def _parquet_types(location: Location, fields: RowFields) -> list[pa.DataType]:
    try:
        with location.open() as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise invalid_parquet(location, error) from error
    select_columns(location, fields.columns, schema.names)
    return [kept_type(schema.field(name).type) for name in fields.keep]
