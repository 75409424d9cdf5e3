"""A directory that appears whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stella_jax.errors import StellaError


@contextmanager
def new_directory(destination: Path, needed: int) -> Iterator[Path]:
    """Yields a working directory beside `destination`, which takes its name when the block ends well.

    An error removes it. A kill leaves it behind under its working name, `.NAME.partial`; the next run begins anew.

    Args:
      destination: must not exist yet.
      needed: bytes that will be written; too little free space is refused at once.

    Raises:
      StellaError: the destination exists, or the disk is full.
    """
    if destination.exists() or destination.is_symlink():
        raise StellaError(f"{destination} exists already; remove it or choose another name.")
    working = destination.parent / f".{destination.name}.partial"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _require_space(destination.parent, needed)
        shutil.rmtree(working, ignore_errors=True)
        working.mkdir()
        yield working
        _flush(working)
        working.rename(destination)
        _flush_entry(destination.parent)
    except BaseException as error:
        shutil.rmtree(working, ignore_errors=True)
        if _is_disk_full(error):
            raise StellaError(
                f"the disk of {destination.parent} is full; nothing was kept, make room and run again."
            ) from error
        raise


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StellaError(
            f"{folder} has {free / 2**20:.0f} MiB free, and some {needed / 2**20:.0f} MiB are to be written; make room."
        )


def _is_disk_full(error: BaseException) -> bool:
    # The storage library under Orbax wraps the system's error into a text.
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error)


def _flush(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _flush_entry(path)
    _flush_entry(directory)


def _flush_entry(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
