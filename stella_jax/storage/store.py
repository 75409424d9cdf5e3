"""Where a job's output lies: a folder of this machine (or one that many mount), or a URL of an object store."""

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
from stella_jax.storage.location import URL, Location, check_path, filesystem, open_regular, told

CHECKSUM = "checksum"


class Damaged(StellaError):
    """A file of a job that is not as it was written."""


class Store(ABC):
    """Files by name, with at most one folder before it; `str` of it is what the user knows it by.

    Attributes:
      log_interval: how often a line may be added to a file.
    """

    log_interval: float

    @abstractmethod
    def replacing(self, name: str) -> AbstractContextManager[BufferedIOBase]:
        """A file to write and read back, which is there under its name, whole, once the block has ended well."""

    @abstractmethod
    def append(self, name: str, data: bytes) -> None:
        """Adds to a file's end, without a promise for the case of a kill."""

    @abstractmethod
    def open(self, name: str) -> BufferedIOBase:
        """The file's bytes, seekable; FileNotFoundError where there is none."""

    @abstractmethod
    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name (without the folder) and bytes of each file of a folder."""

    @abstractmethod
    def stamps(self, folder: str) -> dict[str, tuple[Any, ...]]:
        """Name (without the folder) of each file of a folder, and what is different once it was written again."""

    def folders(self) -> list[str]:
        """Names of the folders in it."""
        return []

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""

    @abstractmethod
    def prepare(self, *folders: str) -> None:
        """Makes the folders, and removes from them what killed writers left."""

    @abstractmethod
    def leftovers(self, folder: str = "") -> list[str]:
        """Names of what killed writers left in a folder."""

    @property
    @abstractmethod
    def temp_dir(self) -> Path:
        """A folder of this machine for temporary files, on the disk of the output where that is one."""

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def write_json(self, name: str, fields: dict[str, Any]) -> None:
        """Writes a JSON object, with a checksum at its end; equal ones give equal bytes."""
        with self.replacing(name) as file:
            file.write(_with_checksum(fields))

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object that `write_json` wrote.

        Raises:
          Damaged: a byte of it is another.
          FileNotFoundError: there is no such file.
        """
        data = self.read(name)
        try:
            fields = json.loads(data)
            del fields[CHECKSUM]
        except (ValueError, TypeError, KeyError):
            fields = None
        if fields is None or _with_checksum(fields) != data:
            raise Damaged(f"{self}/{name} is damaged: it is not what was written.")
        return fields


def _with_checksum(fields: dict[str, Any]) -> bytes:
    checksum = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    return json.dumps(fields | {CHECKSUM: checksum}, indent=1).encode() + b"\n"


def open_store(out: str | Path) -> Store:
    """The store at a path or URL; nothing is made yet.

    Raises:
      StellaError: it is a file, of no kind of URL that can be written, or no path.
    """
    check_path(out)
    url = URL.match(str(out)) if isinstance(out, str) else None
    if url and url[1].lower() != "file":
        return RemoteStore(str(out))
    path = Path(str(out)[url.end() :]) if url else Path(out)
    if path.exists() and not path.is_dir():
        raise StellaError(f"{path}: not a directory.")
    return LocalStore(path)


class LocalStore(Store):
    """A folder."""

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
                with suppress(FileNotFoundError):  # removed since
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

    An object appears when its upload ends; one that was cut short has no commit. What is to be written is put together
    on this machine's disk first, and a file that grows is written anew.
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
            with told(f"{self}/{name}"), self._files.open(self._path(name), "wb") as remote:
                shutil.copyfileobj(file, cast(BufferedIOBase, remote), 2**20)

    def append(self, name: str, data: bytes) -> None:
        before = b"" if self.size(name) is None else self.read(name)
        with told(f"{self}/{name}"):
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
        """What the store says of each file of a folder, by its name."""
        path = self._path(folder) if folder else self._root
        self._files.invalidate_cache(path)
        with told(f"{self}/{folder}"):
            try:
                found = self._files.ls(path, detail=True)
            except FileNotFoundError:
                return {}
        return {entry["name"].rsplit("/", 1)[-1]: entry for entry in found if entry["type"] == "file"}

    def size(self, name: str) -> int | None:
        path = self._path(name)
        self._files.invalidate_cache(path.rsplit("/", 1)[0])
        with told(f"{self}/{name}"):
            try:
                found = self._files.info(path)
            except FileNotFoundError:
                return None
        return found["size"] if found["type"] == "file" else None

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            with told(f"{self}/{name}"):
                self._files.rm_file(self._path(name))

    def prepare(self, *folders: str) -> None:
        pass  # there are no folders, and an upload that was killed leaves no object

    def leftovers(self, folder: str = "") -> list[str]:
        return []

    @property
    def temp_dir(self) -> Path:
        return Path(tempfile.gettempdir())

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
