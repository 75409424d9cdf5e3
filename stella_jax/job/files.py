"""Bytes of an input file: opened, decompressed, freed of a byte order mark."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from typing import BinaryIO, cast

from stella_jax.errors import StellaError
from stella_jax.job.location import Location

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def open_bytes(location: Location) -> Iterator[BinaryIO]:
    """The file's bytes after a UTF-8 byte order mark, unzipped where its name ends in .gz; `tell` counts unzipped ones.

    Raises:
      StellaError: it begins with the mark of UTF-16 or UTF-32.
    """
    with location.open() as stored, _unzipped(stored, location.name) as file:
        start = file.peek(3)[:3]
        if start[:2] in UTF16_MARKS:
            raise StellaError(f"{location} is UTF-16 or UTF-32 text; save it as UTF-8.")
        file.read(len(UTF8_MARK) if start == UTF8_MARK else 0)
        yield cast(BinaryIO, file)


def _unzipped(file: BufferedReader, name: str):
    return gzip.GzipFile(fileobj=file) if name.lower().endswith(".gz") else nullcontext(file)
