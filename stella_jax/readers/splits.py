"""Cuts inputs into splits, the units of work of a process, from the sizes of the files alone.

A file larger than `split_bytes` is cut into byte ranges where its format allows it (.jsonl, .txt, .parquet, not
compressed); a record, or a row group of Parquet, belongs to the range in which it begins, as in Hadoop's
TextInputFormat. Other files are read whole; runs of small ones make one split.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

# A small corpus is cut into some 32 splits, a larger one into splits of 1 MiB, a large one into some 4096 of up to
# 64 MiB, so that the processes of a pod finish at about the same time.
SMALLEST, MIDDLE, LARGEST = 2**14, 2**20, 2**26
FEW, MANY = 32, 4096


class FileSize(NamedTuple):
    """The properties of an input file that splits depend on; files added to a job later have a higher `generation`."""

    size: int
    can_be_cut: bool
    generation: int


class ByteRange(NamedTuple):
    """The records that begin in bytes `start` to `stop` of the input file with this number."""

    input: int
    start: int
    stop: int


class Split(NamedTuple):
    """A unit of work: byte ranges of input files. `number` counts from 0, in the order of the inputs."""

    number: int
    byte_ranges: tuple[ByteRange, ...]

    @property
    def size(self) -> int:
        return sum(each.stop - each.start for each in self.byte_ranges)


def default_split_bytes(total: int) -> int:
    """The size in bytes of a split of a corpus of `total` bytes."""
    return max(SMALLEST, min(total // FEW, MIDDLE), min(total // MANY, LARGEST))


def plan_splits(files: Sequence[FileSize], split_bytes: int) -> list[Split]:
    """The splits of these files. Adding files of a higher generation does not change earlier splits."""
    return [Split(number, found) for number, found in enumerate(_byte_ranges(files, split_bytes))]


def _byte_ranges(files: Sequence[FileSize], split_bytes: int) -> Iterator[tuple[ByteRange, ...]]:
    run: list[ByteRange] = []
    run_size, generation = 0, 0
    for i, file in enumerate(files):
        if run and (run_size + file.size > split_bytes or file.generation != generation):
            yield tuple(run)
            run, run_size = [], 0
        generation = file.generation
        if file.size > split_bytes and file.can_be_cut:
            count = -(-file.size // split_bytes)
            cuts = [file.size * k // count for k in range(count + 1)]
            yield from ((ByteRange(i, cuts[k], cuts[k + 1]),) for k in range(count))
        else:
            run.append(ByteRange(i, 0, file.size))
            run_size += file.size
    if run:
        yield tuple(run)
