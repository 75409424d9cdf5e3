"""Columns that are copied from the inputs into the parts: one type each, the same in every part of a job."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError, first_line
from stella_jax.readers.columns import copied_type, present
from stella_jax.readers.rows import Fields, Row
from stella_jax.storage.location import Location


def resolve_types(locations: Sequence[Location], fields: Fields) -> Fields:
    """The fields with the types of what they keep: those of the first input, which all others must have.

    A .parquet file keeps its own types; what .csv and .jsonl files hold is written as strings, other values of JSON as
    their JSON text. Only the first input is opened. That another has other types, or lacks a column, is found where it
    is opened, before any of its rows; of a .jsonl file, a row without the field gets null.

    Args:
      locations: the job's inputs in their order; those that are added later come after the others.

    Raises:
      StellaError: the first input lacks a column, or another has no types and the first one's is no string.
    """
    if not fields.keep:
        return fields
    first = locations[0]
    types = _parquet_types(first, fields) if _is_parquet(first) else [pa.string()] * len(fields.keep)
    for name, type in zip(fields.keep, types, strict=True):
        text = next((each for each in locations if type != pa.string() and not _is_parquet(each)), None)
        if text is not None:
            raise StellaError(
                f"{text}: column {name!r} is text, and of type {type} in {first}; convert one of them, or leave it out "
                "of --keep."
            )
    return replace(fields, kept_types=tuple(types))


def kept_columns(rows: Sequence[Row], fields: Fields) -> dict[str, pa.Array]:
    """The columns that n rows are written with beside their embeddings; `fields` as `resolve_types` gave them."""
    return {
        name: _column([row.kept[i] for row in rows], type)
        for i, (name, type) in enumerate(zip(fields.keep, fields.kept_types, strict=True))
    }


def _column(values: Sequence[str | pa.Array | None], type: pa.DataType) -> pa.Array:
    if type == pa.string():
        return pa.array(values, type)
    return pa.concat_arrays(values) if values else pa.nulls(0, type)


def _is_parquet(location: Location) -> bool:
    return location.name.lower().endswith(".parquet")


def _parquet_types(location: Location, fields: Fields) -> list[pa.DataType]:
    try:
        with location.open() as file:
            schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise StellaError(f"{location} is not a valid Parquet file: {first_line(error).rstrip('.')}.") from error
    present(location, fields.columns, schema.names)
    return [copied_type(schema.field(name).type) for name in fields.keep]
