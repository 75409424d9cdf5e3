"""A seeded sample of a job's inputs, the same on every process: places spread over all of their bytes.

Each byte is as likely as any other to be in a place, which stands for one over its size (Hansen and Hurwitz, 1943):
totals of the inputs, estimated from the places, have no bias, and the places' spread says how far they may be off.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BufferedReader
from itertools import islice
from random import Random

import numpy as np

from stella_jax.readers.inputs import InputFile
from stella_jax.readers.parquet_rows import row_groups
from stella_jax.readers.records import FORMATS
from stella_jax.readers.rows import Fields, Rejected, Row
from stella_jax.readers.split_reader import read_split
from stella_jax.readers.splits import Piece, Split
from stella_jax.storage.location import Location

SEED = 42
PLACES = 64
PLACE_BYTES = (2**16, 2**19, 2**22)  # the next, where rows are so long that the last one found too few
ENOUGH_ROWS = 512

# What is kept of a place, more where the inputs are small, and records that are counted of one in a compressed file.
PLACE_ROWS = 256
PLACE_ROWS_OF_ALL = 4096
PLACE_CHARACTERS = 2**20
PLACE_RECORDS = 2**14

READERS = 8


@dataclass(slots=True)
class Place:
    """Some rows that lie together.

    Attributes:
      size: bytes of the inputs that they take.
      most: rows to keep.
      weight: what the place stands for, relative to the other places.
      rows: how many there are, with those that would be rejected.
      kept: the first of them.
    """

    size: int
    most: int
    weight: float = 1.0
    rows: int = 0
    kept: list[Row | Rejected] = field(default_factory=list)
    _characters: int = 0

    @property
    def is_kept_whole(self) -> bool:
        return len(self.kept) == self.rows

    def add(self, row: Row | Rejected) -> bool:
        """Counts a row, and keeps it if it is one of the first; returns whether it did."""
        self.rows += 1
        has_room = len(self.kept) < self.most and self._characters < PLACE_CHARACTERS
        if has_room and len(self.kept) == self.rows - 1:
            self.kept.append(row)
            self._characters += row.characters if isinstance(row, Row) else 0
        return self.is_kept_whole


def sample_inputs(files: Sequence[InputFile], fields: Fields) -> tuple[list[Place], bool]:
    """Reads a sample whose size does not depend on that of the inputs; whether it is all there is.

    Of compressed and .csv files, which can only be read from their beginning, the first rows stand for all.

    Raises:
      StellaError: a file cannot be read, is damaged there, or lacks a column.
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
    files: Sequence[InputFile], fields: Fields, regions: Iterator["_Region"]
) -> Iterator[tuple["_Region", list[Place]]]:
    listed = list(regions)
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(listed, pool.map(lambda region: region.places(files, fields), listed), strict=True)


@dataclass(frozen=True, slots=True)
class _Region:
    """Bytes of an input file of which `count` places are wanted, that take at least `place_bytes` each."""

    input: int
    start: int
    stop: int
    count: int
    place_bytes: int
    most_rows: int

    def places(self, files: Sequence[InputFile], fields: Fields) -> list[Place]:
        file = files[self.input]
        if _has_groups(file):
            return list(self._in_group(file, fields))
        if file.can_be_cut:
            return [self._in_lines(file, fields)]
        return list(self._from_beginning(file, fields))

    def _in_lines(self, file: InputFile, fields: Fields) -> Place:
        place, split = self._place(), Split(0, (Piece(0, self.start, self.stop),))
        for row, *_ in read_split([replace(file, is_cut=True)], split, fields):
            place.add(row)
        return place

    def _in_group(self, file: InputFile, fields: Fields) -> Iterator[Place]:
        """Runs of a row group's rows, each of which stands for the group, whose number of rows is known."""
        groups = [group for group in row_groups(file.location) if group.offset < self.stop]
        if not groups or not groups[-1].rows:
            yield self._place()
            return
        first, rows = groups[-1].first_row, groups[-1].rows
        runs = range(0, rows, self.most_rows)[: self.count]
        for begin in runs:
            place, count = self._place(), min(self.most_rows, rows - begin)
            for number, record in enumerate(islice(file.records(fields, first + begin), count), first + begin + 1):
                row = file.row(number, record, fields)
                if row is not None and not place.add(row):
                    break
            place.rows, place.weight = rows, 1 / len(runs)
            yield place

    def _from_beginning(self, file: InputFile, fields: Fields) -> Iterator[Place]:
        """Places one after the other, up to the end of the file at most."""
        location, most = _Watched(file.location.given), self.count * PLACE_RECORDS
        place, begin, end, done, number = self._place(), 0, 0, 0, 0
        for number, record in enumerate(islice(replace(file, location=location).records(fields), most), 1):
            if location.position > end:  # the rows so far are those of the bytes up to `end`
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
        place.size = max(1, (end if number == most else file.size) - begin)
        yield place

    def _place(self) -> Place:
        return Place(self.stop - self.start, self.most_rows)


@dataclass(frozen=True, slots=True)
class _Watched(Location):
    """A location that knows how far its file has been read."""

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
    """Of one byte in each of `PLACES` equal stretches of all; several may be in one region."""
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
    """As many places as were drawn."""
    for i in range(region.count):
        place = found[i % len(found)]
        yield replace(place, weight=1 / place.size)


def _region_of(file: InputFile, at: int, place_bytes: int) -> tuple[int, int]:
    """The bytes that are sampled together, around this one."""
    if _has_groups(file):
        bounds = [0, *(group.offset for group in row_groups(file.location)[1:]), file.size]
        number = int(np.searchsorted(bounds, at, side="right"))
        return bounds[number - 1], bounds[number]
    if file.can_be_cut:
        start = at - at % place_bytes
        return start, min(start + place_bytes, file.size)
    return 0, file.size


def _has_groups(file: InputFile) -> bool:
    return file.format is FORMATS[".parquet"]
