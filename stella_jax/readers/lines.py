"""Rows of .jsonl and .txt files. They are split as bytes, so that invalid UTF-8 affects its own line only."""

import json
from collections.abc import Generator, Sequence
from io import BufferedReader
from itertools import islice
from typing import Any, BinaryIO, cast

from stella_jax.readers.columns import Column, RawRow, RowError
from stella_jax.readers.decompress import open_bytes
from stella_jax.storage.location import Location

# A longer line is rejected: it may be a whole file without line ends, and would not fit into memory.
MAX_LINE_BYTES = 64 * 2**20
BLOCK = 2**20

_scan_json = json.JSONDecoder().raw_decode


def read_lines(
    location: Location, columns: Sequence[Column], start: int, offset: int | None
) -> Generator[tuple[Any, int], bool | None, None]:
    """Every line from number `start` (from 0) on, without its line end, and the offset of the next line.

    A byte order mark at offset 0 is skipped. `send(True)` skips the blank lines that come next, and returns their
    number instead of a line.
    """
    with open_bytes(location, offset or 0) as file:
        lines = _bounded(file)
        if offset is None:
            next(islice(lines, start, start), None)
        yield from lines


def _bounded(file: BinaryIO) -> Generator[tuple[Any, int], bool | None, None]:
    end, limit, readline, skips = file.tell(), MAX_LINE_BYTES, file.readline, None
    while line := readline(limit):
        end += len(line)
        if line.endswith(b"\n"):
            skips = yield line[: -2 if line.endswith(b"\r\n") else -1], end
        elif len(line) < limit:
            skips = yield line.removesuffix(b"\r"), end
        else:
            end += _skip_line(file)
            skips = yield RowError(f"longer than {limit >> 20} MiB without a line end"), end
        if skips:
            lines, size, error = _skip_blank(cast(BufferedReader, file))
            end += size
            yield lines, end
            if error:
                raise error


def _skip_blank(file: BufferedReader) -> tuple[int, int, Exception | None]:
    """Skips blank lines, up to the end of the buffer in which the last of them ends.

    Returns:
      The number of skipped lines and bytes, and the error raised after them, if any.
    """
    lines = size = 0
    try:
        while block := file.peek(BLOCK):
            blank = len(block) - len(block.lstrip(b" \t\r\n"))
            length = block.rfind(b"\n", 0, blank) + 1
            lines += block.count(b"\n", 0, length)
            size += len(file.read(length))
            if length < len(block):
                break
    except Exception as error:  # raised by the caller after these lines
        return lines, size, error
    return lines, size, None


def _skip_line(file: BinaryIO) -> int:
    """Reads to the end of the line; returns the number of bytes."""
    skipped = 0
    while rest := file.readline(MAX_LINE_BYTES):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def json_row(line: bytes, columns: Sequence[Column]) -> RawRow | None:
    """The JSON object on a line, None for a blank line."""
    text = decode(line)
    try:
        row, end = _scan_json(text)
    except (ValueError, RecursionError):
        row, end = None, -1
    if end != len(text):  # white space, or invalid JSON, for which `loads` has the message
        if not text or text.isspace():
            return None
        row = _parse(text)
    if not isinstance(row, dict):
        raise RowError("not a JSON object")
    return row


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON: {error}") from None


def text_row(line: bytes, columns: Sequence[Column]) -> RawRow:
    """The line of text, as the value of the first column."""
    return {columns[0].name: decode(line)}


def decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: byte 0x{value[error.start]:02X} at byte {error.start}") from None
