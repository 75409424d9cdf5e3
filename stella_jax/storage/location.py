"""Where input files lie: on this machine or behind URLs, named one by one or by patterns."""

import errno
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fsspec.implementations.arrow import ArrowFile

from stella_jax.errors import StellaError, short_repr
from stella_jax.readers.file_types import SUPPORTED, file_type
from stella_jax.storage.patterns import Entry, List, below, is_pattern, matches, split, tree
from stella_jax.storage.urls import STORES, ObjectStore, filesystem, is_known, told

# At least two letters, since one is a drive. No path matches once pathlib has made one slash of two.
URL = re.compile("([A-Za-z][A-Za-z0-9+.-]+)://")
# An object store takes some 30 ms to answer, whatever it then sends.
BLOCK = 4 * 2**20
# What fsspec's file systems call that which changes when a file is written again, the best first.
TAGS = ("ETag", "etag", "generation")
VERSIONS = (*TAGS, "md5Hash", "checksum", "crc32c", "mtime", "LastModified", "last_modified", "modified", "updated")
VERSIONS += ("modify", "created")
NOT_REGULAR = "{}: not a regular file; a pipe, socket or device cannot be read, copy its content into a file."


Kind = Literal["file", "directory", "special"]


class Stat(NamedTuple):
    """What tells that a file has changed.

    Attributes:
      size: in bytes.
      version: a local file's time of modification in nanoseconds; an object's etag, generation, checksum or time of
        modification, whichever its store gives first; "" where it gives none.
    """

    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Location:
    """A file, by a URL or a path as pathlib writes it; `locate` makes one of what a user types.

    Attributes:
      listed: the file as `expand` saw it; None for a location that does not come from there.
      block: bytes asked for at once behind a URL.
    """

    given: str
    listed: Stat | None = field(default=None, compare=False, repr=False, kw_only=True)
    resolved: str | None = field(default=None, compare=False, repr=False, kw_only=True)
    block: int = field(default=BLOCK, compare=False, repr=False, kw_only=True)

    def __str__(self) -> str:
        return self.given

    @property
    def is_url(self) -> bool:
        return URL.match(self.given) is not None

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return self.given.rpartition("/")[2]

    @property
    def full(self) -> str:
        """The URL, or the absolute path without links: a location made from it is this one in any working directory."""
        return self.resolved or (self.given if self.is_url else os.path.realpath(self.given))

    @property
    def parts(self) -> tuple[str, ...]:
        """`full` in pieces, the file's own name last."""
        return tuple(self.full.split("/"))

    def kind(self) -> Kind | None:
        """What lies there, None for nothing; "special" is a pipe, a socket or a device."""
        return _look(self, _real)[0]

    def open(self) -> io.BufferedReader:
        """The file's bytes, seekable.

        Raises:
          OSError: the path cannot be opened.
          StellaError: it is not a file, or the URL cannot be opened; reading may raise it too.
        """
        if not self.is_url:
            return open_regular(self.given)
        system, path = filesystem(self.given)
        with told(self.given):
            return io.BufferedReader(_Remote(self.given, system.open(path, "rb")), self.block)

    def stat(self) -> Stat:
        """Size and version as they are now, by one request; raises as `open` does."""
        if not self.is_url:
            return _local_stat(os.stat(self.given))
        system, path = filesystem(self.given)
        with told(self.given):
            system.invalidate_cache()
            return _remote_stat(system.info(path))

    def size(self) -> int:
        """Bytes of the file; raises as `open` does."""
        return self.stat().size

    def version(self) -> str:
        """See `Stat`; raises as `open` does."""
        return self.stat().version


def open_regular(path: str | Path) -> io.BufferedReader:
    """Opens a file of this machine.

    Raises:
      OSError: it cannot be opened.
      StellaError: it is a pipe, which might be waited for without end, or a socket or device.
    """
    if _kind(os.stat(path).st_mode) == "special":
        raise StellaError(NOT_REGULAR.format(path))
    return Path(path).open("rb")


def file_not_found(location: Location) -> StellaError:
    return StellaError(f"{location}: file not found (paths are relative to the working directory).")


def require_file(location: Location) -> None:
    """Raises StellaError where there is no file."""
    if location.kind() != "file":
        raise file_not_found(location)


def check_path(text: str | Path) -> None:
    """Raises StellaError where it is empty or holds a NUL character, so that nothing can lie there."""
    if not str(text) or "\0" in str(text):
        raise StellaError(f"{short_repr(str(text))} is not a path; name a file, a directory or a URL.")


def locate(text: str | Path) -> Location:
    """The location that a user means: text with :// is a URL, unless it is of no known kind and there is such a path.

    A URL is taken as it stands, without percent escapes; file:// is a path.

    Raises:
      StellaError: as `check_path`.
    """
    check_path(text)
    found = URL.match(text) if isinstance(text, str) else None
    if found:
        scheme, rest = found[1].lower(), found.string[found.end() :]
        if scheme == "file":
            return Location(str(Path(rest)))
        if is_known(scheme) or not Path(text).exists():
            return Location(f"{STORES.get(scheme, scheme)}://{rest}")
    return Location(str(Path(text)))


def expand(inputs: Sequence[str | Path]) -> list[Location]:
    """The files that paths, URLs, directories and patterns (see `patterns.matches`) name, each's in its place.

    A directory stands for all files of supported types below it, as the pattern `DIR/**` would, without those whose
    names, or folders' names, begin with a dot or an underscore. Where a file or directory has the name that looks like
    a pattern, that is what is meant. Each file is looked at once; the locations keep what was seen.

    Raises:
      StellaError: one is missing, not a file, of no known kind of URL, or given twice; a pattern or directory has no
        file.
    """
    real: Callable[[str], str] = cache(_real)
    locations = [location for text in inputs for location in _expand(locate(text), real)]
    full = [location.full for location in locations]
    counts = Counter(full)
    twice = [str(location) for location, where in zip(locations, full, strict=True) if counts[where] > 1]
    if twice:
        raise StellaError(f"{twice[0]} is given twice.")
    return locations


def _real(path: str) -> str:
    return os.path.realpath(path)


def _expand(location: Location, real: Callable[[str], str]) -> list[Location]:
    kind, found = _look(location, real)
    if kind == "directory":
        inside = _below(location)
        if not inside:
            raise StellaError(f"{location}: the directory holds no file of a supported type; supported: {SUPPORTED}.")
    elif kind is None and is_pattern(location.given):
        inside = _matching(location)
        if not inside:
            raise StellaError(f"{location} matches no file.")
    else:
        inside = [found]
    return [_regular(each, real) for each in inside]


def _regular(location: Location, real: Callable[[str], str]) -> Location:
    """The location with what `expand` keeps of it."""
    if location.listed:
        return location
    kind, found = _look(location, real)
    if kind is None:
        raise StellaError(f"{location} does not exist.")
    if kind != "file":
        raise StellaError(NOT_REGULAR.format(location))
    return found


def _below(folder: Location) -> list[Location]:
    name = "" if folder.given == "." else f"{folder.given.removesuffix('/')}/"
    listing = _Listing(name, deep=True)
    return [found for found in map(listing.location, below(name, listing.entries)) if file_type(found.name)]


def _matching(pattern: Location) -> list[Location]:
    folder, names = split(pattern.given)
    listing = _Listing(folder, deep=len(names) > 1 or names == ["**"])
    return [listing.location(path) for path in matches(pattern.given, listing.entries)]


class _Listing:
    """What lies in a folder (its name with a slash at its end, or empty) and those below it; only this once."""

    def __init__(self, folder: str, deep: bool):
        self._stats: dict[str, Stat] = {}
        self.entries: List = _local_entries
        if Location(folder).is_url:
            system, path = filesystem(folder)
            self.entries = self._remote_entries
            if isinstance(system, ObjectStore):
                with told(folder):
                    files = {info["name"].removeprefix(f"{path}/"): info for info in system.files(path, deep)}
                self._stats = {folder + name: _remote_stat(info) for name, info in files.items()}
                self.entries = tree(folder, files)

    def location(self, path: str) -> Location:
        return Location(path, listed=self._stats.get(path))

    def _remote_entries(self, folder: str) -> list[Entry]:
        system, path = filesystem(folder)
        with told(folder):
            try:
                found = system.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        # Some list the folder itself, too, or a file of its name in its place.
        prefix = f"{path.strip('/')}/".lstrip("/")
        named = [(info["name"].strip("/").removeprefix(prefix), info) for info in found if _is_in(info, prefix)]
        # What a listing lacks may stand in the answer about one file; a tag stands in both.
        self._stats |= {folder + name: _remote_stat(info) for name, info in named if any(map(info.get, TAGS))}
        return [Entry(name, info["type"] == "directory") for name, info in named]


def _is_in(info: Mapping[str, Any], prefix: str) -> bool:
    return info["name"].strip("/").startswith(prefix)


def _local_entries(folder: str) -> list[Entry]:
    try:
        with os.scandir(folder or ".") as entries:
            return [Entry(entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _look(location: Location, real: Callable[[str], str]) -> tuple[Kind | None, Location]:
    """What lies there, and for a file its location with `listed`; `real` is `_real` or remembers it."""
    if location.is_url:
        return _look_remote(location)
    path = location.given
    try:
        status = os.lstat(path)
        is_link = stat.S_ISLNK(status.st_mode)
        kind = _kind((status := os.stat(path) if is_link else status).st_mode)
    except ValueError:  # a NUL in it
        return None, location
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None, location
    if kind != "file":
        return kind, location
    folder, slash, name = path.rpartition("/")
    resolved = os.path.realpath(path) if is_link else f"{real(folder + slash or '.').rstrip('/')}/{name}"
    return kind, Location(path, listed=_local_stat(status), resolved=resolved)


def _look_remote(location: Location) -> tuple[Kind | None, Location]:
    system, path = filesystem(location.given)
    with told(location.given):
        try:
            info = system.info(path)
        except FileNotFoundError:
            return None, location
        if info["type"] == "directory":
            return "directory", location
        return "file", Location(location.given, listed=_remote_stat(info))


def _kind(mode: int) -> Kind:
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "special"


def _local_stat(status: os.stat_result) -> Stat:
    return Stat(status.st_size, str(status.st_mtime_ns))


def _remote_stat(info: Mapping[str, Any]) -> Stat:
    versions = (info[key] for key in VERSIONS if info.get(key))
    version = next(versions, "")
    return Stat(int(info["size"]), version.isoformat() if isinstance(version, datetime) else str(version))


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
