"""Patterns such as data/**/*.jsonl, matched segment by segment against whatever can list its folders."""

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple


class Entry(NamedTuple):
    """What a folder lists: a bare name, and whether it is a folder, and one to be searched by `**`."""

    name: str
    is_folder: bool
    is_link: bool = False


List = Callable[[str], Iterable[Entry]]


def is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def split(pattern: str) -> tuple[str, list[str]]:
    """The folder that a pattern begins with, with a slash at its end or empty, and the names from the first `*` on."""
    segments = pattern.split("/")
    first = next(i for i, segment in enumerate(segments) if is_pattern(segment))
    return "".join(f"{segment}/" for segment in segments[:first]), segments[first:]


def matches(pattern: str, entries: List) -> list[str]:
    """The files that a pattern names, in the order of their code points; folders are no matches.

    `*`, `?`, `[...]` and `[!...]` stand for characters of one name, `**` as a whole name for any number of folders, or
    at the end for every file below. As in a shell, upper case is not lower case, a name that begins with a dot is
    matched only where the pattern shows that dot, and `**` does not follow links.

    Args:
      entries: what lies in a folder; folders are given to it with a slash at their end, or empty for the current one.
    """
    return sorted(set(_descend(*split(pattern), cache(entries), set())))


def below(folder: str, entries: List) -> list[str]:
    """The files below a folder, as `matches` finds those of `folder/**`.

    Names that begin with a dot or an underscore are left out, as readers of Parquet datasets do, and what lies in
    folders of such names.
    """

    def shown(wanted: str) -> list[Entry]:
        return [entry for entry in entries(wanted) if not entry.name.startswith("_")]

    return sorted(set(_descend(folder, ["**"], cache(shown), set())))


def tree(folder: str, paths: Iterable[str]) -> List:
    """Lists folders of which no more is known than the files below one of them, by their paths from there."""
    found: dict[str, set[Entry]] = {}
    for path in paths:
        above = folder
        *names, name = path.split("/")
        for part in names:
            found.setdefault(above, set()).add(Entry(part, True))
            above += f"{part}/"
        found.setdefault(above, set()).add(Entry(name, False))
    return lambda wanted: found.get(wanted, ())


def _descend(folder: str, segments: list[str], entries: List, seen: set[tuple[str, int]]) -> Iterator[str]:
    """The files that the names match from a folder on; none where it has been looked through for them before."""
    if (folder, len(segments)) in seen:
        return
    seen.add((folder, len(segments)))
    segment, rest = segments[0], segments[1:]
    deep = segment == "**"
    if deep and rest:
        yield from _descend(folder, rest, entries, seen)
    for entry in entries(folder):
        if entry.name.startswith(".") if deep else not _fits(entry.name, segment):
            continue
        path = folder + entry.name
        if not entry.is_folder:
            yield from () if rest else (path,)
        elif deep:
            yield from () if entry.is_link else _descend(f"{path}/", segments, entries, seen)
        elif rest:
            yield from _descend(f"{path}/", rest, entries, seen)


def _fits(name: str, segment: str) -> bool:
    return fnmatchcase(name, segment) and name.startswith(".") <= segment.startswith(".")
