"""The files in a folder, here or behind a URL."""

import os
from collections.abc import Mapping
from typing import Any

from stella_jax.storage.location import TAGS, Location, Stat, remote_stat
from stella_jax.storage.patterns import Entry, ListFolder, files_below, files_matching, from_paths, split_pattern
from stella_jax.storage.urls import ObjectStoreFileSystem, filesystem, store_errors


def list_below(folder: Location) -> list[Location]:
    """All files below a folder (see `patterns.files_below`)."""
    name = "" if folder.given == "." else f"{folder.given.removesuffix('/')}/"
    listing = _Listing(name, deep=True)
    return [listing.location(path) for path in files_below(name, listing.entries)]


def list_matching(pattern: Location) -> list[Location]:
    """All files that match a pattern (see `patterns.files_matching`)."""
    folder, names = split_pattern(pattern.given)
    listing = _Listing(folder, deep=len(names) > 1 or names == ["**"])
    return [listing.location(path) for path in files_matching(pattern.given, listing.entries)]


class _Listing:
    """The content of a folder and, if `deep`, of those below it, each listed once.

    Args:
      folder: its name, with a slash at the end, or empty for the working directory.
    """

    def __init__(self, folder: str, deep: bool):
        self._stats: dict[str, Stat] = {}
        self.entries: ListFolder = _local_entries
        if Location(folder).is_url:
            system, path = filesystem(folder)
            self.entries = self._remote_entries
            if isinstance(system, ObjectStoreFileSystem):
                with store_errors(folder):
                    files = {info["name"].removeprefix(f"{path}/"): info for info in system.files(path, deep)}
                self._stats = {folder + name: remote_stat(info) for name, info in files.items()}
                self.entries = from_paths(folder, files)

    def location(self, path: str) -> Location:
        return Location(path, listed=self._stats.get(path))

    def _remote_entries(self, folder: str) -> list[Entry]:
        system, path = filesystem(folder)
        with store_errors(folder):
            try:
                found = system.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        # Some file systems list the folder itself as well, or a file of the same name instead.
        prefix = f"{path.strip('/')}/".lstrip("/")
        named = [(info["name"].strip("/").removeprefix(prefix), info) for info in found if _is_in(info, prefix)]
        # A listing may lack properties that a request for the one file returns; a tag is in both.
        self._stats |= {folder + name: remote_stat(info) for name, info in named if any(map(info.get, TAGS))}
        return [Entry(name, info["type"] == "directory") for name, info in named]


def _is_in(info: Mapping[str, Any], prefix: str) -> bool:
    return info["name"].strip("/").startswith(prefix)


def _local_entries(folder: str) -> list[Entry]:
    try:
        with os.scandir(folder or ".") as entries:
            return [Entry(entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
