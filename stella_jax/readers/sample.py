"""A seeded sample of a job's inputs, the same on every process.

Places are drawn with probability proportional to their size in bytes, and weighted by its inverse (Hansen and Hurwitz,
1943): totals estimated from them are unbiased, and their spread gives a standard error.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BufferedReader
from itertools import islice
from random import Random

import numpy as np

from stella_jax.readers.file_types import is_parquet
from stella_jax.readers.inputs import InputFile
from stella_jax.readers.parquet_rows import row_groups
from stella_jax.readers.rows import Rejected, Row, RowFields
from stella_jax.readers.split_reader import read_split
from stella_jax.readers.splits import ByteRange, Split
from stella_jax.storage.location import Location

SEED = 42
PLACES = 64
PLACE_BYTES = (2**16, 2**19, 2**22)  # the next size, if rows are so long that too few were found
ENOUGH_ROWS = 512

# Limits on a place: rows kept (more if the inputs are small), characters kept, and records of a compressed file.
PLACE_ROWS = 256
PLACE_ROWS_OF_ALL = 4096
PLACE_CHARACTERS = 2**20
PLACE_RECORDS = 2**14

READERS = 8


@dataclass(slots=True)
class Place:
    """Consecutive rows of an input.

    Attributes:
      size: in bytes.
      max_kept: how many rows to keep.
      weight: relative to other places.
      rows: number of rows, including rejected ones.
      kept: the first rows.
    """

    size: int
    max_kept: int
    weight: float = 1.0
    rows: int = 0
    kept: list[Row | Rejected] = field(default_factory=list)
    _characters: int = 0

    @property
    def is_kept_whole(self) -> bool:
        return len(self.kept) == self.rows

    def add(self, row: Row | Rejected) -> bool:
        """Counts a row, and keeps it if there is room; returns whether it was kept."""
        self.rows += 1
        has_room = len(self.kept) < self.max_kept and self._characters < PLACE_CHARACTERS
        if has_room and len(self.kept) == self.rows - 1:
            self.kept.append(row)
            self._characters += row.characters if isinstance(row, Row) else 0
        return self.is_kept_whole


def sample_inputs(files: Sequence[InputFile], fields: RowFields) -> tuple[list[Place], bool]:
    """Reads a sample, whose size does not grow with the inputs; also returns whether it is all of the inputs.

    Compressed and .csv files can only be read from the start, so their first rows are the sample.

    Raises:
      StellaError: a file cannot be read, is damaged in the sample, or lacks a column.
    """
    total = sum(file.size for file in files)
    if total <= PLACES * PLACE_BYTES[0]:
        return [place for _, found in _read(files, fields, _all_regions(files)) for place in found], True
    places: list[Place] = []
    for place_bytes in PLACE_BYTES:
        regions = _read(files, fields, _drawn_regions(files, place_bytes))
        places = [place for region, found in regions for place in _draws(region, found)]
        if sum(len(place.kept) for place in places) >= ENOUGH_ROWS:
            break
    return places, False


def _read(
    files: Sequence[InputFile], fields: RowFields, regions: Iterator["_Region"]
) -> Iterator[tuple["_Region", list[Place]]]:
    listed = list(regions)
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(listed, pool.map(lambda region: region.places(files, fields), listed), strict=True)


@dataclass(frozen=True, slots=True)
class _Region:
    """A byte range of an input file from which to take `count` places, of at least `place_bytes` each."""

    input: int
    start: int
    stop: int
    count: int
    place_bytes: int
    max_rows: int

    def places(self, files: Sequence[InputFile], fields: RowFields) -> list[Place]:
        file = files[self.input]
        if is_parquet(file.location.name):
            return list(self._in_groups(file, fields))
        if file.can_be_cut:
            return [self._in_lines(file, fields)]
        return list(self._from_beginning(file, fields))

    def _in_lines(self, file: InputFile, fields: RowFields) -> Place:
        place, split = self._place(), Split(0, (ByteRange(0, self.start, self.stop),))
        for row, *_ in read_split([replace(file, is_cut=True)], split, fields):
            place.add(row)
        return place

    def _in_groups(self, file: InputFile, fields: RowFields) -> Iterator[Place]:
        """Ranges of the rows of some row groups, each of which represents them all, as their number is known."""
        groups = [group for group in row_groups(file.location) if self.start <= group.offset < self.stop]
        rows = sum(group.rows for group in groups)
        if not rows:
            yield self._place()
            return
        first = groups[0].first_row
        runs = range(0, rows, self.max_rows)[: self.count]
        for begin in runs:
            place, count = self._place(), min(self.max_rows, rows - begin)
            for number, record in enumerate(islice(file.records(fields, first + begin), count), first + begin + 1):
                row = file.row(number, record, fields)
                if row is not None and not place.add(row):
                    break
            place.rows, place.weight = rows, 1 / len(runs)
            yield place

    def _from_beginning(self, file: InputFile, fields: RowFields) -> Iterator[Place]:
        """Consecutive places, at most up to the end of the file."""
        location, limit = _Tracked(file.location.given), self.count * PLACE_RECORDS
        place, begin, end, done, number = self._place(), 0, 0, 0, 0
        for number, record in enumerate(islice(replace(file, location=location).records(fields), limit), 1):
            if location.position > end:  # the rows so far end before `end`
                if end - begin >= self.place_bytes:
                    place.size = end - begin
                    yield place
                    place, begin, done = self._place(), end, done + 1
                    if done == self.count:
                        return
                end = location.position
            row = file.row(number, record, fields)
            if row is not None:
                place.add(row)
        place.size = max(1, (end if number == limit else file.size) - begin)
        yield place

    def _place(self) -> Place:
        return Place(self.stop - self.start, self.max_rows)


@dataclass(frozen=True, slots=True)
class _Tracked(Location):
    """A location that tracks how far its file has been read."""

    _opened: list[BufferedReader] = field(default_factory=list)

    def open(self) -> BufferedReader:
        self._opened.append(Location.open(self))
        return self._opened[-1]

    @property
    def position(self) -> int:
        return self._opened[-1].tell()


def _all_regions(files: Sequence[InputFile]) -> Iterator[_Region]:
    for i, file in enumerate(files):
        start = 0
        while start < file.size:
            start, stop = _region_of(file, start, PLACE_BYTES[0])
            yield _Region(i, start, stop, PLACES, PLACE_BYTES[0], PLACE_ROWS_OF_ALL)
            start = stop


def _drawn_regions(files: Sequence[InputFile], place_bytes: int) -> Iterator[_Region]:
    """The regions of one random byte in each of `PLACES` equal stretches; a region may be drawn several times."""
    ends = np.cumsum([file.size for file in files])
    random, drawn = Random(SEED), Counter[tuple[int, int, int]]()
    for i in range(PLACES):
        at = int((i + random.random()) * (int(ends[-1]) / PLACES))
        number = int(np.searchsorted(ends, at, side="right"))
        file = files[number]
        drawn[number, *_region_of(file, at - int(ends[number]) + file.size, place_bytes)] += 1
    for (number, start, stop), count in drawn.items():
        yield _Region(number, start, stop, count, place_bytes, PLACE_ROWS)


def _draws(region: _Region, found: Sequence[Place]) -> Iterator[Place]:
    """One weighted place per draw of the region."""
    for i in range(region.count):
        place = found[i % len(found)]
        yield replace(place, weight=1 / place.size)


def _region_of(file: InputFile, at: int, place_bytes: int) -> tuple[int, int]:
    """The byte range that is sampled together with this byte."""
    if is_parquet(file.location.name):
        bounds = _bounds(file, place_bytes)
        number = int(np.searchsorted(bounds, at, side="right"))
        return bounds[number - 1], bounds[number]
    if file.can_be_cut:
        start = at - at % place_bytes
        return start, min(start + place_bytes, file.size)
    return 0, file.size


def _bounds(file: InputFile, place_bytes: int) -> list[int]:
    """Where regions begin and end: a row group, or as many small ones as have `place_bytes` and fit into one place."""
    bounds, first_row = [0], 0
    for group in row_groups(file.location)[1:]:
        rows = group.first_row + group.rows - first_row
        if group.offset - bounds[-1] >= place_bytes or rows > PLACE_ROWS_OF_ALL:
            bounds.append(group.offset)
            first_row = group.first_row
    return [*bounds, file.size]
