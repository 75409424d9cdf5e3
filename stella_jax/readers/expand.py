"""The input files that paths, URLs, directories and patterns stand for."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from stella_jax.errors import StellaError
from stella_jax.readers.file_types import SUPPORTED, file_type
from stella_jax.storage.listing import list_below, list_matching
from stella_jax.storage.location import NOT_REGULAR, Location, file_not_found, locate
from stella_jax.storage.patterns import is_pattern


def expand(inputs: Sequence[str | Path]) -> list[Location]:
    """The files that paths, URLs, directories and patterns (see `patterns.files_matching`) name, in the given order.

    A directory stands for all files of supported types below it, as the pattern `DIR/**` would, without files and
    folders whose names begin with a dot or an underscore. If a file or directory has a name that looks like a pattern,
    that file or directory is meant. Each file is looked up once; the locations keep its size and version.

    Raises:
      StellaError: a file is missing, not regular, behind an unsupported URL, or given twice; or a pattern or directory
        has no file.
    """
    realpath: Callable[[str], str] = cache(_realpath)
    locations = [location for text in inputs for location in _expand(locate(text), realpath)]
    full = [location.full for location in locations]
    counts = Counter(full)
    twice = [location for location, path in zip(locations, full, strict=True) if counts[path] > 1]
    if twice:
        raise StellaError(f"{twice[0]}: given twice; name each input once.")
    return locations


def _realpath(path: str) -> str:
    return os.path.realpath(path)


def _expand(location: Location, realpath: Callable[[str], str]) -> list[Location]:
    kind, found = location.look(realpath)
    if kind == "directory":
        files = [file for file in list_below(location) if file_type(file.name)]
        if not files:
            raise StellaError(f"{location}: no file of a supported type in this directory; supported: {SUPPORTED}.")
    elif kind is None and is_pattern(location.given):
        files = list_matching(location)
        if not files:
            raise StellaError(f"{location}: no file matches this pattern.")
    else:
        files = [found]
    return [_regular_file(file, realpath) for file in files]


def _regular_file(location: Location, realpath: Callable[[str], str]) -> Location:
    """The location with its size and version."""
    if location.listed:
        return location
    kind, found = location.look(realpath)
    if kind is None:
        raise file_not_found(location)
    if kind != "file":
        raise StellaError(NOT_REGULAR.format(location))
    return found
