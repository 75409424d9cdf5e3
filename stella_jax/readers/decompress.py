"""The bytes of an input file, decompressed and without a byte order mark."""

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from typing import Any, BinaryIO, cast

import pyarrow as pa

from stella_jax.errors import StellaError, first_line
from stella_jax.readers.file_types import file_type
from stella_jax.readers.keep_open import KeepOpen
from stella_jax.storage.location import Location

UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BLOCK = 2**16


class BadZstdFile(OSError):
    """A damaged zstd stream."""


@contextmanager
def open_bytes(location: Location, offset: int = 0) -> Iterator[BinaryIO]:
    """The file's bytes from an offset on, decompressed according to its name; `tell` counts decompressed bytes.

    At offset 0 a UTF-8 byte order mark is skipped.

    Reading raises EOFError at the end of a truncated compressed file, and gzip.BadGzipFile, zlib.error or BadZstdFile
    if it is damaged.

    Raises:
      StellaError: the file begins with the byte order mark of UTF-16 or UTF-32.
    """
    with location.open() as stored, _decompressed(stored, location.name) as file:
        if offset:
            file.seek(offset)
            yield cast(BinaryIO, file)
            return
        start = file.peek(3)[:3]
        if start[:2] in UTF16_MARKS:
            raise StellaError(f"{location}: UTF-16 or UTF-32 text; save it as UTF-8.")
        file.read(len(UTF8_MARK) if start == UTF8_MARK else 0)
        yield cast(BinaryIO, file)


def _decompressed(file: BufferedReader, name: str):
    found = file_type(name)
    match found and found.compression:
        case "gzip":
            return gzip.GzipFile(fileobj=file)
        case "zstd":
            return BufferedReader(_ZstdReader(file), BLOCK)
    return nullcontext(file)


class _ZstdReader(io.RawIOBase):
    """The content of consecutive zstd frames, unbuffered; it seeks forward by reading."""

    def __init__(self, file: BufferedReader):
        self._file = file
        self._stream = self._restarted()
        self._at = 0
        self._error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or offset < self._at:
            raise io.UnsupportedOperation("a zstd stream can only be read forward")
        while self._at < offset and self.read(min(BLOCK, offset - self._at)):
            pass
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        if self._error:
            raise self._error
        try:
            return self._stream.read(size)
        except OSError as error:
            if error.errno is not None:  # an error of the file, not of the stream
                raise
            self._error = EOFError() if "Truncated" in str(error) else BadZstdFile(first_line(error))
        return self._last_bytes() or self._read(size)

    def _last_bytes(self) -> bytes:
        """The bytes up to the fault, which the failed read has dropped."""
        self._stream, data = self._restarted(), b""
        try:
            rest = self._at
            while rest:
                rest -= len(self._stream.read(min(BLOCK, rest)))
            while byte := self._stream.read(1):
                data += byte
        except OSError:
            pass
        return data

    def _restarted(self) -> pa.CompressedInputStream:
        self._file.seek(0)
        return pa.CompressedInputStream(pa.PythonFile(KeepOpen(self._file), "r"), "zstd")
