"""Where input files lie: on this machine or behind URLs, named one by one or by patterns."""

import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsspec.implementations.arrow import ArrowFile

from stella_jax.errors import StellaError
from stella_jax.job.patterns import Entry, List, is_pattern, matches, split, tree
from stella_jax.job.urls import STORES, ObjectStore, filesystem, is_known, told

# At least two letters, since one is a drive. No path matches once pathlib has made one slash of two.
URL = re.compile("([A-Za-z][A-Za-z0-9+.-]+)://")
# Bytes asked for at once behind a URL: an object store takes some 30 ms to answer, whatever it then sends.
BLOCK = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Location:
    """A file, by a URL or a path as pathlib writes it; `locate` makes one of what a user types."""

    given: str

    def __str__(self) -> str:
        return self.given

    @property
    def is_url(self) -> bool:
        return URL.match(self.given) is not None

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return self.given.rpartition("/")[2] if self.is_url else Path(self.given).name

    @property
    def full(self) -> str:
        """The URL, or the absolute path without links: a location made from it is this one in any working directory."""
        return self.given if self.is_url else str(Path(self.given).resolve())

    @property
    def parts(self) -> tuple[str, ...]:
        """`full` in pieces, the file's own name last."""
        return tuple(self.given.split("/")) if self.is_url else Path(self.full).parts

    def kind(self) -> Literal["file", "directory"] | None:
        """What lies there, None for nothing."""
        if self.is_url:
            return _remote_kind(self.given)
        path = Path(self.given)
        return "directory" if path.is_dir() else "file" if path.exists() else None

    def open(self) -> io.BufferedReader:
        """The file's bytes, seekable.

        Raises:
          OSError: the path cannot be opened.
          StellaError: the URL cannot be opened; reading may raise it too.
        """
        if not self.is_url:
            return Path(self.given).open("rb")
        system, path = filesystem(self.given)
        with told(self.given):
            return io.BufferedReader(_Remote(self.given, system.open(path, "rb")), BLOCK)

    def size(self) -> int:
        """Bytes of the file; raises as `open` does."""
        if not self.is_url:
            return Path(self.given).stat().st_size
        system, path = filesystem(self.given)
        with told(self.given):
            return int(system.info(path)["size"])

    def version(self) -> str:
        return "" if self.is_url else str(Path(self.given).stat().st_mtime_ns)


def locate(text: str | Path) -> Location:
    """The location that a user means: text with :// is a URL, unless it is of no known kind and there is such a path.

    A URL is taken as it stands, without percent escapes; file:// is a path.
    """
    found = URL.match(text) if isinstance(text, str) else None
    if found:
        scheme, rest = found[1].lower(), found.string[found.end() :]
        if scheme == "file":
            return Location(str(Path(rest)))
        if is_known(scheme) or not Path(text).exists():
            return Location(f"{STORES.get(scheme, scheme)}://{rest}")
    return Location(str(Path(text)))


def expand(inputs: Sequence[str | Path]) -> list[Location]:
    """The files that paths, URLs and patterns (see `patterns.matches`) name, each pattern's in its place.

    Where a file or directory has the name that looks like a pattern, that is what is meant.

    Raises:
      StellaError: one is missing, a directory, of no known kind, or given twice, or a pattern matches nothing.
    """
    locations = [location for text in inputs for location in _expand(locate(text))]
    full = [location.full for location in locations]
    counts = Counter(full)
    twice = [str(location) for location, where in zip(locations, full, strict=True) if counts[where] > 1]
    if twice:
        raise StellaError(f"{twice[0]} is given twice.")
    return locations


def _expand(location: Location) -> list[Location]:
    kind = location.kind()
    if kind == "file":
        return [location]
    if kind == "directory":
        raise StellaError(f"{location} is a directory; name the files in it.")
    if not is_pattern(location.given):
        raise StellaError(f"{location} does not exist.")
    found = matches(location.given, _listing(location.given) if location.is_url else _local_entries)
    if not found:
        raise StellaError(f"{location} matches no file.")
    return [Location(path) for path in found]


def _local_entries(folder: str) -> list[Entry]:
    try:
        with os.scandir(folder or ".") as entries:
            return [Entry(entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _listing(pattern: str) -> List:
    folder, names = split(pattern)
    system, path = filesystem(folder)
    if not isinstance(system, ObjectStore):
        return _remote_entries
    with told(folder):
        files = system.files(path, deep=len(names) > 1 or names == ["**"])
    return tree(folder, [file.removeprefix(f"{path}/") for file in files])


def _remote_entries(folder: str) -> list[Entry]:
    system, path = filesystem(folder)
    with told(folder):
        try:
            found = system.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
    # Some list the folder itself, too, or a file of its name in its place.
    prefix = f"{path.strip('/')}/".lstrip("/")
    named = [(info["name"].strip("/"), info["type"] == "directory") for info in found]
    return [Entry(name.removeprefix(prefix), is_folder) for name, is_folder in named if name.startswith(prefix)]


def _remote_kind(url: str) -> Literal["file", "directory"] | None:
    system, path = filesystem(url)
    with told(url):
        try:
            return "directory" if system.info(path)["type"] == "directory" else "file"
        except FileNotFoundError:
            return None


class _Remote(io.RawIOBase):
    """A file behind a URL, to be buffered.

    It keeps a position of its own, since all who open a file of fsspec's memory:// get the same object.
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
        with told(self._url):
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
        with told(self._url):
            return self._file.stream.size() if isinstance(self._file, ArrowFile) else self._file.size

    def _read(self, size: int) -> bytes:
        if isinstance(self._file, ArrowFile):  # whose `seek` may ask for all that follows
            return self._file.stream.read_at(size, self._at)
        if self._file.tell() != self._at:
            self._file.seek(self._at)
        return self._file.read(size)
