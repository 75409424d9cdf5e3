"""Commits: one small file a part, written after the part has its final name; a part without one does not count.

The name says where the part belongs and whether it is the last of its split, so that a listing alone tells what is left
to do. Commits stay after the job has ended: the manifest is made of them, and a part that is found damaged later is
made again alone.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

from stella_jax.readers.split_reader import Position
from stella_jax.storage.store import Damaged, Store

FOLDER = "_job/commits"
NAME = re.compile(r"part-(\d+)-(\d+)(\.last)?\.json")

# Commits read at once: an object store takes tens of milliseconds for each.
READERS = 16


class PartName(NamedTuple):
    """A part: the number of its split, and its own in the split."""

    split: int
    number: int

    def __str__(self) -> str:
        return f"part-{self.split:06}-{self.number:04}"

    @property
    def file(self) -> str:
        return f"{self}.parquet"

    @property
    def ids_file(self) -> str:
        return f"_job/ids/{self}.parquet"


@dataclass(frozen=True, slots=True)
class Commit:
    """What became of the rows of a part.

    Attributes:
      key: of the split in the job (`Job.key`), so that a process of another job cannot pass its part off.
      is_last: whether it ends its split.
      after: the position in the split after its last row.
      rows: in the part file, as are `tokens`; without any there is no file.
      size, sha256: of the part file; `ids_sha256` of the file of its ids.
      digest: of the rows it was made of.
      own_ids: whether any row has an id of its own, not made of its position.
      rejected: rows that are not in the file, as `rejected.jsonl` has them.
      repeats: those of them that were taken out of the file because an earlier row has their id, by their row in it.
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
        """What the manifest says of a part."""
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
    """The numbers of a split's committed parts, and that of its last one, as far as it is known."""

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
        for file in store.sizes(FOLDER):
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
        """The commits of parts, in their order; None for a damaged one."""
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(partial(_read, store), [self.files[name] for name in names])

    def invalidate(self, store: Store, names: Sequence[PartName]) -> None:
        """Makes parts count as not done."""
        for name in names:
            store.remove(f"{FOLDER}/{self.files[name]}")


def write_commit(store: Store, commit: Commit) -> None:
    """Commits a part, whose files are there already."""
    store.write_json(f"{FOLDER}/{commit.file_name}", asdict(commit))


def _read(store: Store, file: str) -> Commit | None:
    try:
        fields = store.read_json(f"{FOLDER}/{file}")
        name, after = PartName(*fields.pop("name")), Position(*fields.pop("after"))
        rejected, repeats = tuple(fields.pop("rejected")), tuple(fields.pop("repeats"))
        commit = Commit(name=name, after=after, rejected=rejected, repeats=repeats, **fields)
    except (Damaged, FileNotFoundError, TypeError, KeyError):
        return None
    return commit if commit.file_name == file else None


def part_name(text: str) -> PartName:
    """The name that `str` of it gives."""
    split, number = text.removeprefix("part-").split("-")
    return PartName(int(split), int(number))


def is_part_file(name: str) -> bool:
    return re.fullmatch(r"part-\d+-\d+\.parquet", name) is not None
