"""Rows of .jsonl and .txt files, split on bytes so that a line with wrong UTF-8 spoils no other."""

import json
from collections.abc import Iterator
from typing import BinaryIO

from stella_jax.job.files import open_bytes
from stella_jax.job.location import Location
from stella_jax.job.rows import MISSING, Cells, Fault, Fields

# A line beyond this is no row but a file without line ends; reading it whole could take all memory there is.
LONGEST = 64 * 2**20


def read_lines(
    location: Location, fields: Fields, start: int, offset: int | None
) -> Iterator[tuple[bytes | Fault, int]]:
    """Every line from number `start` (from 0), without its end, and the offset of the line after it.

    An offset of 0 is the file's beginning: a byte order mark there is no part of the first line.
    """
    with open_bytes(location) as file:
        if offset:
            file.seek(offset)
        skipped = start if offset is None else 0
        for number, (line, end) in enumerate(_bounded(file)):
            if number >= skipped:
                yield line if isinstance(line, Fault) else line.removesuffix(b"\n").removesuffix(b"\r"), end


def _bounded(file: BinaryIO) -> Iterator[tuple[bytes | Fault, int]]:
    end = file.tell()
    while line := file.readline(LONGEST):
        end += len(line)
        if len(line) < LONGEST or line.endswith(b"\n"):
            yield line, end
        else:
            end += _skip_line(file)
            yield Fault(f"longer than {LONGEST >> 20} MiB without a line end"), end


def _skip_line(file: BinaryIO) -> int:
    """Reads on to the line's end; returns how many bytes that was."""
    skipped = 0
    while rest := file.readline(LONGEST):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def json_cells(line: bytes, fields: Fields) -> Cells | None:
    """The cells of a line of JSON, None for a blank line."""
    text = decode(line)
    if not text or text.isspace():
        return None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise Fault(f"not JSON: {error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise Fault(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise Fault("not a JSON object")
    return Cells(row.get(fields.text, MISSING), row.get(fields.id_name, MISSING))


def text_cells(line: bytes, fields: Fields) -> Cells:
    """The cells of a line of text: all of it, and no id."""
    return Cells(decode(line), MISSING)


def decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Fault(f"not UTF-8: byte 0x{value[error.start]:02X} at byte {error.start}") from None
