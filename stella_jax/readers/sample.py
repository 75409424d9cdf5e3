"""A seeded sample of a job's inputs, the same on every process.

Blocks of consecutive rows are drawn with probability proportional to their size in bytes, and weighted by its inverse
(Hansen and Hurwitz, 1943): totals estimated from them are unbiased, and their spread gives a standard error.
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
BLOCKS = 64
BLOCK_BYTES = (2**16, 2**19, 2**22)  # the next size, if rows are so long that too few were found
ENOUGH_ROWS = 512

# Limits on a block: rows kept (more if the inputs are small), characters kept, and records of a compressed file.
BLOCK_ROWS = 256
MAX_ROWS_OF_SMALL_INPUTS = 4096
BLOCK_CHARACTERS = 2**20
BLOCK_RECORDS = 2**14

READERS = 8


@dataclass(slots=True)
class SampleBlock:
    """Consecutive rows of an input.

    Attributes:
      size: in bytes.
      max_kept: how many rows to keep.
      weight: relative to other blocks.
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
        has_room = len(self.kept) < self.max_kept and self._characters < BLOCK_CHARACTERS
        if has_room and len(self.kept) == self.rows - 1:
            self.kept.append(row)
            self._characters += row.characters if isinstance(row, Row) else 0
        return self.is_kept_whole


def sample_inputs(files: Sequence[InputFile], fields: RowFields) -> tuple[list[SampleBlock], bool]:
    """Reads a sample, whose size does not grow with the inputs; also returns whether it is all of the inputs.

    Compressed and .csv files can only be read from the start, so their first rows are the sample.

    Raises:
      StellaError: a file cannot be read, is damaged in the sample, or lacks a column.
    """
    total = sum(file.size for file in files)
    if total <= BLOCKS * BLOCK_BYTES[0]:
        return [block for _, found in _read(files, fields, _all_regions(files)) for block in found], True
    blocks: list[SampleBlock] = []
    for block_bytes in BLOCK_BYTES:
        regions = _read(files, fields, _drawn_regions(files, block_bytes))
        blocks = [block for region, found in regions for block in _draws(region, found)]
        if sum(len(block.kept) for block in blocks) >= ENOUGH_ROWS:
            break
    return blocks, False


def _read(
    files: Sequence[InputFile], fields: RowFields, regions: Iterator["_Region"]
) -> Iterator[tuple["_Region", list[SampleBlock]]]:
    listed = list(regions)
    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(listed, pool.map(lambda region: region.blocks(files, fields), listed), strict=True)


@dataclass(frozen=True, slots=True)
class _Region:
    """A byte range of an input file from which to take `count` blocks, of at least `block_bytes` each."""

    input: int
    start: int
    stop: int
    count: int
    block_bytes: int
    max_rows: int

    def blocks(self, files: Sequence[InputFile], fields: RowFields) -> list[SampleBlock]:
        file = files[self.input]
        if is_parquet(file.location.name):
            return list(self._in_groups(file, fields))
        if file.can_be_cut:
            return [self._in_lines(file, fields)]
        return list(self._from_beginning(file, fields))

    def _in_lines(self, file: InputFile, fields: RowFields) -> SampleBlock:
        block, split = self._block(), Split(0, (ByteRange(0, self.start, self.stop),))
        for row, *_ in read_split([replace(file, is_cut=True)], split, fields):
            block.add(row)
        return block

    def _in_groups(self, file: InputFile, fields: RowFields) -> Iterator[SampleBlock]:
        """Ranges of the rows of some row groups, each of which represents them all, as their number is known."""
        groups = [group for group in row_groups(file.location) if self.start <= group.offset < self.stop]
        rows = sum(group.rows for group in groups)
        if not rows:
            yield self._block()
            return
        first = groups[0].first_row
        runs = range(0, rows, self.max_rows)[: self.count]
        for begin in runs:
            block, count = self._block(), min(self.max_rows, rows - begin)
            for number, record in enumerate(islice(file.records(fields, first + begin), count), first + begin + 1):
                row = file.row(number, record, fields)
                if row is not None and not block.add(row):
                    break
            block.rows, block.weight = rows, 1 / len(runs)
            yield block

    def _from_beginning(self, file: InputFile, fields: RowFields) -> Iterator[SampleBlock]:
        """Consecutive blocks, at most up to the end of the file."""
        location, limit = _Tracked(file.location.given), self.count * BLOCK_RECORDS
        block, begin, end, done, number = self._block(), 0, 0, 0, 0
        for number, record in enumerate(islice(replace(file, location=location).records(fields), limit), 1):
            if location.position > end:  # the rows so far end before `end`
                if end - begin >= self.block_bytes:
                    block.size = end - begin
                    yield block
                    block, begin, done = self._block(), end, done + 1
                    if done == self.count:
                        return
                end = location.position
            row = file.row(number, record, fields)
            if row is not None:
                block.add(row)
        block.size = max(1, (end if number == limit else file.size) - begin)
        yield block

    def _block(self) -> SampleBlock:
        return SampleBlock(self.stop - self.start, self.max_rows)


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
            start, stop = _region_of(file, start, BLOCK_BYTES[0])
            yield _Region(i, start, stop, BLOCKS, BLOCK_BYTES[0], MAX_ROWS_OF_SMALL_INPUTS)
            start = stop


def _drawn_regions(files: Sequence[InputFile], block_bytes: int) -> Iterator[_Region]:
    """The regions of one random byte in each of `BLOCKS` equal stretches; a region may be drawn several times."""
    ends = np.cumsum([file.size for file in files])
    random, drawn = Random(SEED), Counter[tuple[int, int, int]]()
    for i in range(BLOCKS):
        at = int((i + random.random()) * (int(ends[-1]) / BLOCKS))
        number = int(np.searchsorted(ends, at, side="right"))
        file = files[number]
        drawn[number, *_region_of(file, at - int(ends[number]) + file.size, block_bytes)] += 1
    for (number, start, stop), count in drawn.items():
        yield _Region(number, start, stop, count, block_bytes, BLOCK_ROWS)


def _draws(region: _Region, found: Sequence[SampleBlock]) -> Iterator[SampleBlock]:
    """One weighted block per draw of the region."""
    for i in range(region.count):
        block = found[i % len(found)]
        yield replace(block, weight=1 / block.size)


def _region_of(file: InputFile, at: int, block_bytes: int) -> tuple[int, int]:
    """The byte range that is sampled together with this byte."""
    if is_parquet(file.location.name):
        bounds = _bounds(file, block_bytes)
        number = int(np.searchsorted(bounds, at, side="right"))
        return bounds[number - 1], bounds[number]
    if file.can_be_cut:
        start = at - at % block_bytes
        return start, min(start + block_bytes, file.size)
    return 0, file.size


def _bounds(file: InputFile, block_bytes: int) -> list[int]:
    """Where regions begin and end: a row group, or as many small ones as have `block_bytes` and fit into one block."""
    bounds, first_row = [0], 0
    for group in row_groups(file.location)[1:]:
        rows = group.first_row + group.rows - first_row
        if group.offset - bounds[-1] >= block_bytes or rows > MAX_ROWS_OF_SMALL_INPUTS:
            bounds.append(group.offset)
            first_row = group.first_row
    return [*bounds, file.size]
