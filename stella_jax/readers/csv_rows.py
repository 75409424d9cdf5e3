"""Rows of .csv files: commas, double quotes, a header."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.readers.columns import NUMBERS, Column, RawRow, RowError, present
from stella_jax.readers.files import open_bytes
from stella_jax.readers.lines import LONGEST
from stella_jax.storage.location import Location

# A quote that is closed before the cell's end: a fault at a line's beginning and within quotes.
NO_CSV = '"b"c\n'


def read_csv(
    location: Location, columns: Sequence[Column], start: int, offset: None = None
) -> Iterator[tuple[RawRow | RowError | None, None]]:
    """Every record after the header from number `start` (from 0); None for a blank line.

    Wrong UTF-8 travels as surrogates, so that it spoils its own record only. A cell is text; in a column of numbers,
    the number that it spells, or the list as in JSON, if it does.

    Raises:
      StellaError: there is no header with the columns, or a quote is never closed and the rest of the file lies in it.
    """
    with _open(location) as (header, records):
        found = present(location, columns, header)
        places = {column.name: header.index(column.name) for column in found}
        numbers = [column.name for column in found if column.kind == NUMBERS]
        for record in islice(records, start, None):
            yield record if isinstance(record, RowError) else _select(record, len(header), places, numbers), None


@contextmanager
def _open(location: Location) -> Iterator[tuple[list[str], Iterator[list[str] | RowError]]]:
    """The header, and the records after it."""
    csv.field_size_limit(LONGEST)  # the module's own, and process-wide: its default of 128 KiB is less than a long text
    with open_bytes(location) as file, io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        size = _Size()
        reader = csv.reader(_bounded(text, size), strict=True)
        yield _header(location, reader, size), _records(location, reader, size)


@dataclass(slots=True)
class _Size:
    """Of the record that is read: characters so far, and whether its line is too long."""

    characters: int = 0
    is_exceeded: bool = False


class _Unbounded(Exception):
    """A record of too many lines, or of a line too long with a quote that is open at its end."""


def _bounded(text: io.TextIOWrapper, size: _Size) -> Iterator[str]:
    """The lines of a file; of one that is too long, one that is no CSV in any place."""
    readline, longest = text.readline, LONGEST
    while line := readline(longest):
        size.characters += len(line)
        if size.characters >= longest:
            if size.characters > len(line) or _quotes(line, readline) % 2:
                raise _Unbounded
            size.is_exceeded = True
            line = NO_CSV
        yield line


def _quotes(line: str, readline: Callable[[int], str]) -> int:
    """How many quotes a line has; reads on to its end."""
    count = line.count('"')
    while line and not line.endswith(("\n", "\r")):
        line = readline(LONGEST)
        count += line.count('"')
    return count


def _header(location: Location, reader: Any, size: _Size) -> list[str]:
    try:
        header = next(reader, None)
    except (csv.Error, _Unbounded) as error:
        is_long = size.is_exceeded or isinstance(error, _Unbounded)
        reason = f"it is longer than {LONGEST >> 20} MiB" if is_long else str(error)
        raise StellaError(f"{location}: invalid header: {reason}.") from None
    if not header:
        raise StellaError(f"{location} is empty; a .csv needs a first line that names its columns.")
    return header


def _records(location: Location, reader: Any, size: _Size) -> Iterator[list[str] | RowError]:
    while True:
        line = reader.line_num + 1
        size.characters = 0
        try:
            yield next(reader)
        except StopIteration:
            return
        except _Unbounded:
            raise StellaError(
                f"{location}: the record at line {line} is longer than {LONGEST >> 20} MiB; perhaps a quote in it is "
                "never closed."
            ) from None
        except csv.Error as error:
            if "end of data" in str(error):
                raise StellaError(
                    f"{location}: the quote opened in the record at line {line} is never closed."
                ) from None
            if size.is_exceeded:
                size.is_exceeded = False
                yield RowError(f"longer than {LONGEST >> 20} MiB without a line end")
            else:
                yield RowError(f"not CSV: {error}")


def _select(
    record: list[str], length: int, places: Mapping[str, int], numbers: Sequence[str]
) -> RawRow | RowError | None:
    if not record:
        return None
    if len(record) != length:
        return RowError(f"has {len(record)} cells where the header has {length}")
    row: dict[str, object] = {name: record[place] for name, place in places.items()}
    for name in numbers:
        row[name] = _number(record[places[name]])
    return row


def _number(cell: str) -> Any:
    try:
        return json.loads(cell) if cell.startswith("[") else float(cell)
    except (ValueError, RecursionError):
        return cell


def csv_row(row: RawRow | None, columns: Sequence[Column]) -> RawRow | None:
    """The same values, if they were UTF-8."""
    for value in (row or {}).values():
        if isinstance(value, str) and not value.isascii():
            _check_utf8(value)
    return row


def _check_utf8(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"not UTF-8: byte 0x{ord(value[error.start]) - 0xDC00:02X}") from None
