"""Rows of .csv files: commas, double quotes, a header."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.readers.columns import NUMBER, NUMBERS, Column, RawRow, RowError, select_columns
from stella_jax.readers.decompress import open_bytes
from stella_jax.readers.lines import MAX_LINE_BYTES
from stella_jax.storage.location import Location

# Invalid both at the start of a line and inside quotes: the quote is closed before the end of the cell.
INVALID_CSV = '"b"c\n'

JSON_SPACE = " \t\r\n"
JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def read_csv(
    location: Location, columns: Sequence[Column], start: int, offset: None = None
) -> Iterator[tuple[RawRow | RowError | None, None]]:
    """Every record after the header from number `start` (from 0) on; None for a blank line.

    Invalid UTF-8 is decoded to surrogates, so that it affects its own record only. A cell is text; in a column of
    numbers it is a number, or a list as in JSON, if it can be read as one.

    Raises:
      StellaError: the header is missing or lacks a column, or a quote is never closed.
    """
    with _open(location) as (header, records):
        found = select_columns(location, columns, header)
        places = {column.name: header.index(column.name) for column in found}
        numbers = [column.name for column in found if column.kind in (NUMBER, NUMBERS)]
        for record in islice(records, start, None):
            yield record if isinstance(record, RowError) else _select(record, len(header), places, numbers), None


@contextmanager
def _open(location: Location) -> Iterator[tuple[list[str], Iterator[list[str] | RowError]]]:
    """The header, and the records after it."""
    csv.field_size_limit(MAX_LINE_BYTES)  # for the whole process; a long text exceeds the default of 128 KiB
    with open_bytes(location) as file, io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        size = _Size()
        reader = csv.reader(_bounded(text, size), strict=True)
        yield _header(location, reader, size), _records(location, reader, size)


@dataclass(slots=True)
class _Size:
    """Characters of the current record so far, and whether its line is too long."""

    characters: int = 0
    is_exceeded: bool = False


class _Unbounded(Exception):
    """A record of too many lines, or a quote that is still open at the end of a line that is too long."""


def _bounded(text: io.TextIOWrapper, size: _Size) -> Iterator[str]:
    """The lines of a file; a line that is too long is replaced by an invalid one."""
    readline, longest = text.readline, MAX_LINE_BYTES
    while line := readline(longest):
        size.characters += len(line)
        if size.characters >= longest:
            if size.characters > len(line) or _quotes(line, readline) % 2:
                raise _Unbounded
            size.is_exceeded = True
            line = INVALID_CSV
        yield line


def _quotes(line: str, readline: Callable[[int], str]) -> int:
    """The number of quotes in a line, which is read to its end."""
    count = line.count('"')
    while line and not line.endswith(("\n", "\r")):
        line = readline(MAX_LINE_BYTES)
        count += line.count('"')
    return count


def _header(location: Location, reader: Any, size: _Size) -> list[str]:
    try:
        header = next(reader, None)
    except (csv.Error, _Unbounded) as error:
        is_long = size.is_exceeded or isinstance(error, _Unbounded)
        reason = f"it is longer than {MAX_LINE_BYTES >> 20} MiB" if is_long else str(error)
        raise StellaError(f"{location}: invalid header: {reason}.") from None
    if not header:
        raise StellaError(f"{location}: empty file; the first line of a .csv must name its columns.")
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
                f"{location}: the record at line {line} is longer than {MAX_LINE_BYTES >> 20} MiB; check whether all "
                "of its quotes are closed."
            ) from None
        except csv.Error as error:
            if "end of data" in str(error):
                raise StellaError(
                    f"{location}: a quote opened in the record at line {line} is never closed; close it."
                ) from None
            if size.is_exceeded:
                size.is_exceeded = False
                yield RowError(f"longer than {MAX_LINE_BYTES >> 20} MiB without a line end")
            else:
                yield RowError(f"not CSV: {error}")


def _select(
    record: list[str], length: int, places: Mapping[str, int], numbers: Sequence[str]
) -> RawRow | RowError | None:
    if not record:
        return None
    if len(record) != length:
        return RowError(f"{len(record)} cells where the header has {length}")
    row: dict[str, object] = {name: record[place] for name, place in places.items()}
    for name in numbers:
        row[name] = _number(record[places[name]])
    return row


def _number(cell: str) -> Any:
    """The number or list that a cell holds, written as in JSON (RFC 8259); any other cell as it is.

    `float` alone would also read 1_000, nan, and digits of other scripts.
    """
    text = cell.strip(JSON_SPACE)
    if JSON_NUMBER.fullmatch(text):
        return float(text)
    try:
        return json.loads(text) if text.startswith("[") else cell
    except (ValueError, RecursionError):
        return cell


def csv_row(row: RawRow | None, columns: Sequence[Column]) -> RawRow | None:
    """The same values; raises RowError if one was not UTF-8."""
    for value in (row or {}).values():
        if isinstance(value, str) and not value.isascii():
            _check_utf8(value)
    return row


def _check_utf8(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"not UTF-8: byte 0x{ord(value[error.start]) - 0xDC00:02X}") from None
