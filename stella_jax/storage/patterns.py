"""Patterns such as data/**/*.jsonl, matched against any file system that can list a folder."""

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple


class Entry(NamedTuple):
    """An entry of a folder: its name without the folder's, and whether it is a folder or a link."""

    name: str
    is_folder: bool
    is_link: bool = False


ListFolder = Callable[[str], Iterable[Entry]]


def is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """The folder before the first wildcard (with a slash at the end, or empty), and the remaining segments."""
    segments = pattern.split("/")
    first = next(i for i, segment in enumerate(segments) if is_pattern(segment))
    return "".join(f"{segment}/" for segment in segments[:first]), segments[first:]


def files_matching(pattern: str, entries: ListFolder) -> list[str]:
    """The files that match a pattern, sorted by code point; folders never match.

    `*`, `?`, `[...]` and `[!...]` match within one name. `**` as a whole segment matches any number of folders, or as
    the last segment every file below. As in a shell, case counts, a name that begins with a dot matches only a segment
    that begins with a dot, and `**` does not follow links.

    Args:
      entries: lists a folder, whose name ends with a slash, or is empty for the working directory.
    """
    return sorted(set(_walk(*split_pattern(pattern), cache(entries), set())))


def files_below(folder: str, entries: ListFolder) -> list[str]:
    """The files that match `folder/**`.

    Files and folders whose names begin with a dot or an underscore are left out, as readers of Parquet datasets do.
    """

    def shown(name: str) -> list[Entry]:
        return [entry for entry in entries(name) if not entry.name.startswith("_")]

    return sorted(set(_walk(folder, ["**"], cache(shown), set())))


def from_paths(folder: str, paths: Iterable[str]) -> ListFolder:
    """Lists the folders that these paths, relative to `folder`, imply."""
    found: dict[str, set[Entry]] = {}
    for path in paths:
        above = folder
        *names, name = path.split("/")
        for part in names:
            found.setdefault(above, set()).add(Entry(part, True))
            above += f"{part}/"
        found.setdefault(above, set()).add(Entry(name, False))
    return lambda name: found.get(name, ())


def _walk(folder: str, segments: list[str], entries: ListFolder, seen: set[tuple[str, int]]) -> Iterator[str]:
    """The files below a folder that match the segments; none if this was asked before (`seen`)."""
    if (folder, len(segments)) in seen:
        return
    seen.add((folder, len(segments)))
    segment, rest = segments[0], segments[1:]
    deep = segment == "**"
    if deep and rest:
        yield from _walk(folder, rest, entries, seen)
    for entry in entries(folder):
        if entry.name.startswith(".") if deep else not _matches(entry.name, segment):
            continue
        path = folder + entry.name
        if not entry.is_folder:
            yield from () if rest else (path,)
        elif deep:
            yield from () if entry.is_link else _walk(f"{path}/", segments, entries, seen)
        elif rest:
            yield from _walk(f"{path}/", rest, entries, seen)


def _matches(name: str, segment: str) -> bool:
    return fnmatchcase(name, segment) and name.startswith(".") <= segment.startswith(".")
