"""Commits: one small file per part, written after the part; a part without a commit does not count.

The file name holds the part's number, and whether it is the last of its split, so that a listing shows what is left to
do. Commits stay after the end of the job: the manifest is made from them, and a part that turns out to be damaged later
can be redone alone.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

from stella_jax.readers.split_reader import Position
from stella_jax.storage.store import DamagedFileError, Store

COMMITS_FOLDER = "_job/commits"
IDS_FOLDER = "_job/ids"
NAME = re.compile(r"part-(\d+)-(\d+)(\.last)?\.json")

# Commits read in parallel: an object store takes tens of milliseconds for each.
READERS = 16


class PartName(NamedTuple):
    """The number of a part's split, and its own number in the split."""

    split: int
    number: int

    @classmethod
    def parse(cls, text: str) -> "PartName":
        """The inverse of `str(name)` and of `name.file`."""
        split, number = text.removeprefix("part-").removesuffix(".parquet").split("-")
        return cls(int(split), int(number))

    def __str__(self) -> str:
        return f"part-{self.split:06}-{self.number:04}"

    @property
    def file(self) -> str:
        return f"{self}.parquet"

    @property
    def ids_file(self) -> str:
        return f"{IDS_FOLDER}/{self}.parquet"


@dataclass(frozen=True, slots=True)
class Commit:
    """The record of a finished part.

    Attributes:
      key: of the split in the job (`Job.key`), so that parts of other jobs are recognized.
      is_last: whether it is the last part of its split.
      after: the position in the split after its last row.
      rows, tokens: in the part file; without rows there is no file.
      size, sha256: of the part file.
      ids_sha256: of the file with the hashes of its ids.
      digest: of the input rows.
      own_ids: whether any row has an id other than its position.
      rejected: the rows that are not in the file, as in `rejected.jsonl`.
      repeats: which rows were removed from the file because an earlier row has the same id, by their index in it.
    """

    key: str
    name: PartName
    is_last: bool
    after: Position
    rows: int
    tokens: int
    size: int
    sha256: str
    ids_sha256: str
    digest: str
    own_ids: bool
    rejected: tuple[dict[str, Any], ...]
    repeats: tuple[int, ...] = ()

    @property
    def file_name(self) -> str:
        return f"{self.name}{'.last' if self.is_last else ''}.json"

    def summary(self) -> dict[str, Any]:
        """The part's entry in the manifest."""
        return {
            "file": self.name.file,
            "rows": self.rows,
            "rejected": len(self.rejected),
            "tokens": self.tokens,
            "size": self.size,
            "sha256": self.sha256,
        }


@dataclass(slots=True)
class SplitCommits:
    """The numbers of a split's committed parts, and the number of its last part, if known."""

    numbers: set[int] = field(default_factory=set)
    last: int | None = None

    @property
    def is_finished(self) -> bool:
        return self.last is not None and len(self.numbers) == self.last + 1


class Committed:
    """The commits in a job's directory, from one listing."""

    def __init__(self, store: Store):
        self.by_split: dict[int, SplitCommits] = {}
        self.files: dict[PartName, str] = {}
        for file in store.sizes(COMMITS_FOLDER):
            if match := NAME.fullmatch(file):
                name = PartName(int(match[1]), int(match[2]))
                self.files[name] = file
                split = self.by_split.setdefault(name.split, SplitCommits())
                split.numbers.add(name.number)
                split.last = name.number if match[3] else split.last

    def of(self, split: int) -> SplitCommits:
        return self.by_split.get(split, SplitCommits())

    def is_finished(self, split: int) -> bool:
        return self.of(split).is_finished

    def names(self) -> list[PartName]:
        return sorted(self.files)

    def read(self, store: Store, names: Iterable[PartName]) -> Iterator[Commit | None]:
        """The commits of these parts, in order; None for a damaged one."""
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(partial(_read, store), [self.files[name] for name in names])

    def read_one(self, store: Store, name: PartName) -> Commit | None:
        """The commit of a part, None if it is missing or damaged."""
        return _read(store, self.files[name]) if name in self.files else None

    def invalidate(self, store: Store, names: Sequence[PartName]) -> None:
        """Removes the commits of parts, which are then embedded again."""
        for name in names:
            store.remove(f"{COMMITS_FOLDER}/{self.files[name]}")


def write_commit(store: Store, commit: Commit) -> None:
    """Commits a part, after its files are written."""
    store.write_json(f"{COMMITS_FOLDER}/{commit.file_name}", asdict(commit))


def _read(store: Store, file: str) -> Commit | None:
    try:
        fields = store.read_json(f"{COMMITS_FOLDER}/{file}")
        name, after = PartName(*fields.pop("name")), Position(*fields.pop("after"))
        rejected, repeats = tuple(fields.pop("rejected")), tuple(fields.pop("repeats"))
        commit = Commit(name=name, after=after, rejected=rejected, repeats=repeats, **fields)
    except (DamagedFileError, FileNotFoundError, TypeError, KeyError):
        return None
    return commit if commit.file_name == file else None


def is_part_file(name: str) -> bool:
    return re.fullmatch(r"part-\d+-\d+\.parquet", name) is not None
