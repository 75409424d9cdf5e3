"""A file behind a URL, for reading through a buffer."""

import io
import os
from typing import Any

from fsspec.implementations.arrow import ArrowFile

from stella_jax.storage.urls import store_errors

# Bytes per request. An object store takes some 30 ms to answer, however little it sends.
BLOCK = 4 * 2**20


class RemoteFile(io.RawIOBase):
    """An open file of fsspec, with a position of its own: everyone who opens a file of memory:// gets the same object.

    Args:
      url: named in errors.
      file: opened by an fsspec file system.
    """

    def __init__(self, url: str, file: Any):
        self._url = url
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with store_errors(self._url):
            data = self._read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            offset += self._size()
        elif whence == os.SEEK_CUR:
            offset += self._at
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()

    def _size(self) -> int:
        with store_errors(self._url):
            return self._file.stream.size() if isinstance(self._file, ArrowFile) else self._file.size

    def _read(self, size: int) -> bytes:
        if isinstance(self._file, ArrowFile):  # its `seek` may request the whole rest of the file
            return self._file.stream.read_at(size, self._at)
        if self._file.tell() != self._at:
            self._file.seek(self._at)
        return self._file.read(size)
