"""Keeps a file open that pyarrow would close together with a stream over it."""

from typing import Any


class KeepOpen:
    """A file that its user cannot close."""

    closed = False

    def __init__(self, file: Any):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None:
        pass
