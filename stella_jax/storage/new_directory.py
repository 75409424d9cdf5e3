"""Atomic writes of a directory: it is complete or absent."""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stella_jax.errors import StellaError, quoted, short_repr
from stella_jax.storage.atomic import FULL, sync_directory


@contextmanager
def new_directory(destination: Path, needed: int) -> Iterator[Path]:
    """Yields a working directory beside `destination`, which is renamed to it when the block succeeds.

    An error removes it. A kill leaves `.NAME.partial` behind, which the next run empties. A lock, which the system
    releases with its process, shows whether another run is still writing there.

    Args:
      destination: must not exist yet.
      needed: bytes that will be written; if there is too little free space, nothing is written.

    Raises:
      StellaError: the destination exists, another run is writing it, or it cannot be written.
    """
    if os.path.lexists(destination):
        raise StellaError(f"{quoted(destination)}: already exists; remove it or choose another name.")
    working = destination.parent / f".{destination.name}.partial"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        _require_space(destination.parent, needed)
        with _emptied(working):
            try:
                yield working
                _flush(working)
                working.rename(destination)
                sync_directory(destination.parent)
            except BaseException:
                shutil.rmtree(working, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno in FULL:
            raise StellaError(
                f"{destination.parent}: disk full, nothing was kept; free some space and run it again."
            ) from error
        if str(error.filename or working).startswith(str(working)):  # a name unknown to the user
            raise StellaError(f"{quoted(destination)}: cannot be written ({error.strerror or error}).") from error
        raise


def check_destination(name: str | Path, source: Path | None = None) -> Path:
    """The path of a directory or file to be written.

    Args:
      source: the checkpoint that it is made from.

    Raises:
      StellaError: it is a URL, not a path at all, or inside the source.
    """
    if not isinstance(name, str | Path) or not str(name) or "\0" in str(name):
        raise StellaError(f"{short_repr(name)}: not a path; pass a path to write to.")
    if "://" in str(name):
        raise StellaError(f"{quoted(name)}: a URL cannot be written to; pass a local path, and copy the result.")
    path = Path(name)
    if source is not None and source.resolve() in (path.resolve(), *path.resolve().parents):
        raise StellaError(f"{quoted(name)}: inside the source {source}; choose a directory outside of it.")
    return path


def check_inside(names: Iterable[str]) -> None:
    """Refuses file names, taken from a checkpoint, that lead out of the new directory.

    Raises:
      StellaError: a name is absolute or goes up.
    """
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise StellaError(f"{short_repr(name)}: this file name in the checkpoint leads out of its directory.")


@contextmanager
def _emptied(working: Path) -> Iterator[None]:
    """The working directory, made or emptied, and locked."""
    working.mkdir(exist_ok=True)
    descriptor = os.open(working, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StellaError(f"{working}: another run is writing it; wait for it, or choose another name.") from None
    try:
        for path in working.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield
    finally:
        os.close(descriptor)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StellaError(
            f"{folder}: {free / 2**20:.0f} MiB free where some {needed / 2**20:.0f} MiB are needed; free some space."
        )


def _flush(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_directory(path)
    sync_directory(directory)
