"""Rows of .jsonl and .txt files, split on bytes so that a line with wrong UTF-8 spoils no other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stella_jax.job.files import open_bytes
from stella_jax.job.rows import MISSING, Cells, Fault, Fields

# A line beyond this is no row but a file without line ends; reading it whole could take all memory there is.
LONGEST = 64 * 2**20


def read_lines(path: Path, fields: Fields, start: int) -> Iterator[bytes | Fault]:
    """Every line from number `start` (from 0), without its end."""
    with open_bytes(path) as file:
        for number, line in enumerate(_bounded(file)):
            if number >= start:
                yield line if isinstance(line, Fault) else line.removesuffix(b"\n").removesuffix(b"\r")


def _bounded(file: BinaryIO) -> Iterator[bytes | Fault]:
    while line := file.readline(LONGEST):
        if len(line) < LONGEST or line.endswith(b"\n"):
            yield line
        else:
            _skip_line(file)
            yield Fault(f"longer than {LONGEST >> 20} MiB without a line end")


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(LONGEST)) and not rest.endswith(b"\n"):
        pass


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
