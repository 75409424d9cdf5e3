"""A file on this machine or behind a URL."""

import errno
import io
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stella_jax.errors import StellaError, short_repr
from stella_jax.storage.remote_file import BLOCK, RemoteFile
from stella_jax.storage.urls import STORES, filesystem, is_known, store_errors

# At least two letters: one letter is a Windows drive. pathlib turns two slashes into one, so none of its paths match.
URL = re.compile("([A-Za-z][A-Za-z0-9+.-]+)://")
# fsspec's names for the property that changes when a file is written again, most reliable first.
TAGS = ("ETag", "etag", "generation")
VERSIONS = (*TAGS, "md5Hash", "checksum", "crc32c", "mtime", "LastModified", "last_modified", "modified", "updated")
VERSIONS += ("modify", "created")
NOT_REGULAR = "{}: not a regular file but a pipe, socket or device; copy its content into a file."


FileKind = Literal["file", "directory", "special"]


class Stat(NamedTuple):
    """Size and version of a file, which show whether it has changed.

    Attributes:
      size: in bytes.
      version: a local file's modification time in nanoseconds; an object's etag, generation, checksum or modification
        time, the first of these that its store reports; "" if it reports none.
    """

    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Location:
    """The URL of a file, or its path in pathlib's spelling; `locate` makes one from user input.

    Attributes:
      listed: the file as a listing or `look` found it, else None.
      resolved: the absolute path without links, if already known.
      block: bytes per request behind a URL.
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
        """The file name, without folders."""
        return self.given.rpartition("/")[2]

    @property
    def full(self) -> str:
        """The URL, or the absolute path without links, which is valid in every working directory."""
        return self.resolved or (self.given if self.is_url else os.path.realpath(self.given))

    @property
    def parts(self) -> tuple[str, ...]:
        """`full`, split at slashes."""
        return tuple(self.full.split("/"))

    def kind(self) -> FileKind | None:
        """Kind of the file there, None if there is none; "special" is a pipe, a socket or a device."""
        return self.look()[0]

    def look(self, realpath: Callable[[str], str] = os.path.realpath) -> tuple[FileKind | None, "Location"]:
        """Kind of the file there, and this location with `listed` filled in.

        Args:
          realpath: resolves links in folder names; a cached one serves many files of the same folder.
        """
        return _look_remote(self) if self.is_url else _look_local(self, realpath)

    def open(self) -> io.BufferedReader:
        """Opens the file for reading; the result is seekable.

        Raises:
          OSError: the path cannot be opened.
          StellaError: it is not a regular file, or the URL cannot be opened; later reads may raise it, too.
        """
        if not self.is_url:
            return open_regular(self.given)
        system, path = filesystem(self.given)
        with store_errors(self.given):
            return io.BufferedReader(RemoteFile(self.given, system.open(path, "rb")), self.block)

    def stat(self) -> Stat:
        """Current size and version, by one request; raises as `open` does."""
        if not self.is_url:
            return local_stat(os.stat(self.given))
        system, path = filesystem(self.given)
        with store_errors(self.given):
            system.invalidate_cache()
            return remote_stat(system.info(path))

    def size(self) -> int:
        """Bytes of the file; raises as `open` does."""
        return self.stat().size


def open_regular(path: str | Path) -> io.BufferedReader:
    """Opens a local file.

    Raises:
      OSError: it cannot be opened.
      StellaError: it is a pipe, from which a read may never return, or a socket or device.
    """
    if _kind(os.stat(path).st_mode) == "special":
        raise StellaError(NOT_REGULAR.format(path))
    return Path(path).open("rb")


def file_not_found(location: Location) -> StellaError:
    is_relative = not location.is_url and not os.path.isabs(str(location))
    hint = " (paths are relative to the working directory)" if is_relative else ""
    return StellaError(f"{location}: file not found{hint}.")


def require_file(location: Location) -> None:
    """Raises StellaError if there is no file."""
    if location.kind() != "file":
        raise file_not_found(location)


def check_path(text: str | Path) -> None:
    """Raises StellaError if the path is empty or holds a NUL character."""
    if not str(text) or "\0" in str(text):
        raise StellaError(f"{short_repr(str(text))}: not a path; pass a file, a directory or a URL.")


def locate(text: str | Path) -> Location:
    """The location that a user means: text with :// is a URL, unless its scheme is unknown and such a path exists.

    Percent escapes in a URL are not decoded; file:// is a path.

    Raises:
      StellaError: the text is empty or holds a NUL character.
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


def _look_local(location: Location, realpath: Callable[[str], str]) -> tuple[FileKind | None, Location]:
    path = location.given
    try:
        status = os.lstat(path)
        is_link = stat.S_ISLNK(status.st_mode)
        kind = _kind((status := os.stat(path) if is_link else status).st_mode)
    except ValueError:  # a NUL character
        return None, location
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None, location
    if kind != "file":
        return kind, location
    folder, slash, name = path.rpartition("/")
    resolved = os.path.realpath(path) if is_link else f"{realpath(folder + slash or '.').rstrip('/')}/{name}"
    return kind, Location(path, listed=local_stat(status), resolved=resolved)


def _look_remote(location: Location) -> tuple[FileKind | None, Location]:
    system, path = filesystem(location.given)
    with store_errors(location.given):
        try:
            info = system.info(path)
        except FileNotFoundError:
            return None, location
        if info["type"] == "directory":
            return "directory", location
        return "file", Location(location.given, listed=remote_stat(info))


def _kind(mode: int) -> FileKind:
    return "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "special"


def local_stat(status: os.stat_result) -> Stat:
    return Stat(status.st_size, str(status.st_mtime_ns))


def remote_stat(info: Mapping[str, Any]) -> Stat:
    versions = (info[key] for key in VERSIONS if info.get(key))
    version = next(versions, "")
    return Stat(int(info["size"]), version.isoformat() if isinstance(version, datetime) else str(version))
