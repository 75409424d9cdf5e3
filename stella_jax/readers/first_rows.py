"""Checks whether a .jsonl input has the fields to read, which a .csv names in its header."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from stella_jax.errors import StellaError, short_repr
from stella_jax.readers.columns import RawRow, RowError, select_columns
from stella_jax.readers.decompress import open_bytes
from stella_jax.readers.file_types import is_jsonl
from stella_jax.readers.inputs import InputFile
from stella_jax.readers.lines import json_row
from stella_jax.readers.records import COMPRESSION_ERRORS
from stella_jax.readers.rows import RowFields
from stella_jax.storage.location import Location

# Bytes, once decompressed, in which to look for rows.
FIRST_BYTES = 2**16


def check_first_rows(files: Sequence[InputFile], fields: RowFields) -> None:
    """Refuses inputs if no row at the start of the first .jsonl file has a field that each row must have.

    Such a field is probably misspelled. Later rows without it are rejected one by one. A field to copy may be rare, so
    there is only a warning.

    Raises:
      MissingColumnError: names the field, and those of the rows.
    """
    location = next((file.location for file in files if is_jsonl(file.location.name)), None)
    rows = list(_first_rows(location, fields)) if location else []
    names = list(dict.fromkeys(name for row in rows for name in row))
    if names:
        select_columns(location, (each for each in fields.columns if each.needed and not each.kind.is_kept), names)
        for name in fields.keep:
            if name not in names:
                logging.getLogger(__name__).warning(
                    "%s: none of the first %d rows has %s, a column to keep; it is null in rows without it.",
                    *(location, len(rows), short_repr(name)),
                )


def _first_rows(location: Location, fields: RowFields) -> Iterator[RawRow]:
    """The valid rows among the first bytes; none of a file that is damaged there, which is found when it is read."""
    content = b""
    with (
        suppress(StellaError, OSError, *COMPRESSION_ERRORS),
        open_bytes(replace(location, block=FIRST_BYTES)) as file,
    ):
        content = file.read(FIRST_BYTES)
    lines = content.split(b"\n")
    for line in lines[:-1] if len(content) == FIRST_BYTES else lines:  # the last one may be cut
        with suppress(RowError):
            if row := json_row(line, fields.columns):
                yield row
