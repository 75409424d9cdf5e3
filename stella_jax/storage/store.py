"""A folder for the output of a job: local (or mounted by many machines), or behind a URL."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

from stella_jax.errors import StellaError
from stella_jax.storage.atomic import is_leftover, leftovers, remove_leftovers, replacing
from stella_jax.storage.location import Location, locate, open_regular
from stella_jax.storage.urls import filesystem, store_errors

CHECKSUM = "checksum"


class DamagedFileError(StellaError):
    """A file that differs from what was written."""


class Store(ABC):
    """Files by name, in at most one level of folders; `str` gives the path or URL.

    Attributes:
      log_interval: least seconds between two lines of a log file.
    """

    log_interval: float

    @abstractmethod
    def replacing(self, name: str) -> AbstractContextManager[BufferedIOBase]:
        """A file to write and read back, which appears under its name, complete, when the block succeeds."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Appends to a file; a kill may leave a part of the data."""

    @abstractmethod
    def open(self, name: str) -> BufferedIOBase:
        """Opens a file for reading, seekable; raises FileNotFoundError."""

    @abstractmethod
    def sizes(self, folder: str = "") -> dict[str, int]:
        """Size in bytes of each file of a folder, by its name without the folder."""

    @abstractmethod
    def stamps(self, folder: str) -> dict[str, tuple[Any, ...]]:
        """For each file of a folder, by its name without the folder, a value that differs once it is written again."""

    def folders(self) -> list[str]:
        """Names of the folders."""
        return []

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size in bytes of a file, None if there is none."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, if it exists."""

    @abstractmethod
    def prepare(self, *folders: str) -> None:
        """Makes the folders, and removes temporary files of killed processes from them."""

    @abstractmethod
    def leftovers(self, folder: str = "") -> list[str]:
        """Names of temporary files of killed processes in a folder."""

    @property
    @abstractmethod
    def temp_dir(self) -> Path:
        """A local folder for temporary files, on the disk of the output if that is local."""

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def write_json(self, name: str, fields: dict[str, Any]) -> None:
        """Writes a JSON object with a checksum as its last field; equal objects give equal bytes."""
        with self.replacing(name) as file:
            file.write(_with_checksum(fields))

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object that `write_json` wrote.

        Raises:
          DamagedFileError: the checksum does not match.
          FileNotFoundError: there is no such file.
        """
        data = self.read(name)
        try:
            fields = json.loads(data)
            del fields[CHECKSUM]
        except (ValueError, TypeError, KeyError):
            fields = None
        if fields is None or _with_checksum(fields) != data:
            raise DamagedFileError(f"{self}/{name}: damaged (its checksum does not match).")
        return fields


def _with_checksum(fields: dict[str, Any]) -> bytes:
    checksum = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    return json.dumps(fields | {CHECKSUM: checksum}, indent=1).encode() + b"\n"


def open_store(out: str | Path) -> Store:
    """The store at a path or URL; nothing is created yet.

    Raises:
      StellaError: there is a file, the URL is not supported, or the path is empty or holds a NUL character.
    """
    location = locate(out)
    if location.is_url:
        return RemoteStore(location.given)
    path = Path(location.given)
    if path.exists() and not path.is_dir():
        raise StellaError(f"{path}: not a directory; use another path.")
    return LocalStore(path)


class LocalStore(Store):
    """A local folder."""

    log_interval = 5.0

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def replacing(self, name: str) -> AbstractContextManager[BufferedIOBase]:
        return replacing(self.path / name)

    def append(self, name: str, data: bytes) -> None:
        with (self.path / name).open("ab") as file:
            file.write(data)

    def open(self, name: str) -> BufferedIOBase:
        return open_regular(self.path / name)

    def sizes(self, folder: str = "") -> dict[str, int]:
        return {name: stamp[0] for name, stamp in self.stamps(folder).items()}

    def stamps(self, folder: str) -> dict[str, tuple[Any, ...]]:
        found: dict[str, tuple[Any, ...]] = {}
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed in the meantime
                    if not is_leftover(entry.name) and entry.is_file():
                        found[entry.name] = (entry.stat().st_size, entry.stat().st_mtime_ns)
        return found

    def folders(self) -> list[str]:
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
        return []

    def size(self, name: str) -> int | None:
        try:
            found = (self.path / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def prepare(self, *folders: str) -> None:
        for folder in ("", *folders):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path / folder)

    def leftovers(self, folder: str = "") -> list[str]:
        found = self.path / folder
        return sorted(path.name for path in leftovers(found)) if found.is_dir() else []

    @property
    def temp_dir(self) -> Path:
        return next(folder for folder in (self.path, *self.path.resolve().parents) if folder.is_dir())


class RemoteStore(Store):
    """A prefix of an object store.

    An object appears when its upload ends. A file is first written to a local temporary file, then uploaded; to append
    to a file uploads it again.
    """

    log_interval = 30.0

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        self._files, root = filesystem(url)
        self._root = root.rstrip("/")

    def __str__(self) -> str:
        return self._url

    @contextmanager
    def replacing(self, name: str) -> Iterator[BufferedIOBase]:
        with tempfile.TemporaryFile() as file:
            yield cast(BufferedIOBase, file)
            file.seek(0)
            with store_errors(f"{self}/{name}"), self._files.open(self._path(name), "wb") as remote:
                shutil.copyfileobj(file, cast(BufferedIOBase, remote), 2**20)

    def append(self, name: str, data: bytes) -> None:
        before = b"" if self.size(name) is None else self.read(name)
        with store_errors(f"{self}/{name}"):
            self._files.pipe_file(self._path(name), before + data)

    def open(self, name: str) -> BufferedIOBase:
        if self.size(name) is None:
            raise FileNotFoundError(2, "No such file", f"{self}/{name}")
        return cast(BufferedIOBase, Location(f"{self}/{name}").open())

    def sizes(self, folder: str = "") -> dict[str, int]:
        return {name: entry["size"] for name, entry in self._listing(folder).items()}

    def stamps(self, folder: str) -> dict[str, tuple[Any, ...]]:
        keys = ("size", "mtime", "etag", "ETag", "generation", "created")
        return {name: tuple(entry.get(key) for key in keys) for name, entry in self._listing(folder).items()}

    def _listing(self, folder: str) -> dict[str, dict[str, Any]]:
        """fsspec's entry of each file of a folder, by its name."""
        path = self._path(folder) if folder else self._root
        self._files.invalidate_cache(path)
        with store_errors(f"{self}/{folder}"):
            try:
                found = self._files.ls(path, detail=True)
            except FileNotFoundError:
                return {}
        return {entry["name"].rsplit("/", 1)[-1]: entry for entry in found if entry["type"] == "file"}

    def size(self, name: str) -> int | None:
        path = self._path(name)
        self._files.invalidate_cache(path.rsplit("/", 1)[0])
        with store_errors(f"{self}/{name}"):
            try:
                found = self._files.info(path)
            except FileNotFoundError:
                return None
        return found["size"] if found["type"] == "file" else None

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            with store_errors(f"{self}/{name}"):
                self._files.rm_file(self._path(name))

    def prepare(self, *folders: str) -> None:
        pass  # there are no folders, and a killed upload leaves no object

    def leftovers(self, folder: str = "") -> list[str]:
        return []

    @property
    def temp_dir(self) -> Path:
        return Path(tempfile.gettempdir())

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
