"""Bytes of an input file: opened, decompressed, freed of a byte order mark."""

import gzip
from pathlib import Path
from typing import BinaryIO, cast

from stella_jax.errors import StellaError

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes after a UTF-8 byte order mark, unzipped where its name ends in .gz.

    Raises:
      StellaError: it begins with the mark of UTF-16 or UTF-32.
    """
    file = gzip.GzipFile(path) if path.name.lower().endswith(".gz") else path.open("rb")
    try:
        start = file.peek(3)[:3]
        if start[:2] in UTF16_MARKS:
            raise StellaError(f"{path} is UTF-16 or UTF-32 text; save it as UTF-8.")
        file.read(len(UTF8_MARK) if start == UTF8_MARK else 0)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, file)
