"""Rows of .csv files: commas, double quotes, a header."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from stella_jax.errors import StellaError, listed
from stella_jax.job.files import open_bytes
from stella_jax.job.lines import LONGEST
from stella_jax.job.location import Location
from stella_jax.job.rows import MISSING, Cells, Fault, Fields, Marks


def read_csv(
    location: Location, fields: Fields, start: int, offset: None = None
) -> Iterator[tuple[Cells | Fault | None, None]]:
    """Every record after the header from number `start` (from 0); None for a blank line.

    Wrong UTF-8 travels as surrogates, so that it spoils its own record only.

    Raises:
      StellaError: there is no header with the fields, or a quote is never closed (the rest of the file lies inside it).
    """
    with _open(location, fields) as (header, records):
        for record in islice(records, start, None):
            yield record if isinstance(record, Fault) else _select(record, header, fields), None


def count_csv(location: Location, fields: Fields) -> tuple[int, Marks]:
    """How many records `read_csv` reads, and no mark but the first; raises as it does."""
    with _open(location, fields) as (_, records):
        return sum(1 for _ in records), [(0, 0)]


@contextmanager
def _open(location: Location, fields: Fields) -> Iterator[tuple[list[str], Iterator[list[str] | Fault]]]:
    """The header, and the records after it."""
    csv.field_size_limit(LONGEST)  # the module's own, and process-wide: its default of 128 KiB is less than a long text
    with open_bytes(location) as file, io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True)
        yield _header(location, reader, fields), _records(location, reader)


def _header(location: Location, reader, fields: Fields) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise StellaError(f"{location} has no sound header: {error}.") from None
    if not header:
        raise StellaError(f"{location} is empty; a .csv needs a first line that names its columns.")
    for field in (fields.text, fields.id):
        if field is not None and header.count(field) != 1:
            many = "more than one column" if field in header else "no column"
            shown = [name.encode(errors="replace").decode() for name in header]
            raise StellaError(f"{location} has {many} {field!r}; its first line names {listed(shown)}.")
    return header


def _records(location: Location, reader) -> Iterator[list[str] | Fault]:
    while True:
        line = reader.line_num + 1
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                raise StellaError(
                    f"{location}: the quote opened in the record at line {line} is never closed."
                ) from None
            yield Fault(f"not CSV: {error}")


def _select(record: list[str], header: list[str], fields: Fields) -> Cells | Fault | None:
    if not record:
        return None
    if len(record) != len(header):
        return Fault(f"has {len(record)} cells where the header has {len(header)}")
    has_id = fields.id_name in header
    return Cells(record[header.index(fields.text)], record[header.index(fields.id_name)] if has_id else MISSING)


def csv_cells(cells: Cells | None, fields: Fields) -> Cells | None:
    """The same cells, if they were UTF-8."""
    for value in cells or ():
        if isinstance(value, str) and not value.isascii():
            _check_utf8(value)
    return cells


def _check_utf8(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Fault(f"not UTF-8: byte 0x{ord(value[error.start]) - 0xDC00:02X}") from None
