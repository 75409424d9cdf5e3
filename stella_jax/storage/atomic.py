"""Atomic writes: a file is complete or absent, whenever the process or the machine stops."""

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
    """A temporary file to write and read, which replaces `path` when the block succeeds, after its bytes are on disk.

    If the block fails, the file is removed and `path` stays as it was. The file is locked while its writer lives, so
    that `remove_leftovers` can tell it from the file of a killed process.

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
    """A new, locked file beside `path`; tries again if it is removed before it is locked."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        file = temporary.open("xb+")
        with suppress(OSError):  # not every file system has locks; leftovers stay on those
            fcntl.flock(file, fcntl.LOCK_SH)
        if temporary.exists():
            return temporary, file
        file.close()


def sync_directory(path: Path) -> None:
    """Flushes a directory, so that its names survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_leftover(name: str) -> bool:
    """Whether it is a name that `replacing` gives its temporary files; a user's `.notes.tmp` is not."""
    return TEMPORARY.fullmatch(name) is not None


def leftovers(folder: Path) -> Iterator[Path]:
    """Temporary files of killed processes, each locked while the caller has it."""
    for path in folder.iterdir():
        if is_leftover(path.name):
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path


def remove_leftovers(folder: Path) -> None:
    for path in leftovers(folder):
        with suppress(OSError):
            path.unlink()
