"""Files that are there whole or not at all, whenever the process or the machine stops."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` when the block ends well: first its bytes reach the disk, then its name.

    Where the block fails, it is removed and `path` is as it was; after a kill, `remove_leftovers` finds it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, atomically; equal values give equal bytes."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def sync_directory(path: Path) -> None:
    """Makes the names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes were writing."""
    for path in folder.iterdir():
        if is_leftover(path):
            path.unlink(missing_ok=True)
