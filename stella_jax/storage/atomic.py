"""Files that are there whole or not at all, whenever the process or the machine stops."""

import errno
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: Path) -> Iterator[BufferedIOBase]:
    """A file to write and read, which becomes `path` when the block ends well: first the bytes reach the disk.

    Where the block fails, it is removed and `path` is as it was. It is locked for as long as its writer lives: that is
    how `remove_leftovers` tells it from what a kill has left.

    Raises:
      OSError: it cannot be written; names `path`.
    """
    try:
        temporary, file = _create(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _create(path: Path) -> tuple[Path, BufferedIOBase]:
    """A new file beside `path`, locked; another one where a removal came between the two."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        file = temporary.open("xb+")
        with suppress(OSError):  # not every file system has locks; leftovers stay there
            fcntl.flock(file, fcntl.LOCK_SH)
        if temporary.exists():
            return temporary, file
        file.close()


def sync_directory(path: Path) -> None:
    """Makes the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_leftover(name: str) -> bool:
    """Whether `replacing` gives such names to what it writes; a user's `.notes.tmp` is not ours to remove."""
    return TEMPORARY.fullmatch(name) is not None


def leftovers(folder: Path) -> Iterator[Path]:
    """What killed processes were writing, and nothing that a living one writes; locked while the caller has it."""
    for path in folder.iterdir():
        if is_leftover(path.name):
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path


def remove_leftovers(folder: Path) -> None:
    for path in leftovers(folder):
        with suppress(OSError):
            path.unlink()
