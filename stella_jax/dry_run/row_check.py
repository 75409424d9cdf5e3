"""Reads all rows of a job's inputs to list invalid rows and repeated ids, in bounded memory."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stella_jax.errors import StellaError, quoted
from stella_jax.job.part_ids import hash_halves, hash_id
from stella_jax.job.repeated_ids import RUN_ROWS, RepeatedIds
from stella_jax.readers.inputs import InputFile
from stella_jax.readers.rows import Rejected, Row, RowFields
from stella_jax.readers.split_reader import read_split
from stella_jax.readers.splits import ByteRange, Split

ROW_POSITION = np.dtype([("input", "<u4"), ("number", "<u8"), ("id_start", "<u8"), ("id_stop", "<u8")])


class RowCheck(NamedTuple):
    """The numbers of rows (including invalid and repeated ones), and of damaged inputs."""

    rows: int
    invalid: int
    repeated: int
    damaged: int

    def __str__(self) -> str:
        damaged = f"; {self.damaged} inputs cannot be read to the end" if self.damaged else ""
        return f"{self.rows} rows: {self.invalid} invalid, {self.repeated} with a repeated id{damaged}"


def check_rows(files: Sequence[InputFile], fields: RowFields, log: Callable[[str], None]) -> RowCheck:
    """Reads all rows to find the ones that the job would reject.

    Temporary files take some 60 bytes per row, and the ids.

    Args:
      log: called with a sentence for each such row, its position and the reason, and for each damaged input.
    """
    invalid = damaged = 0
    with _Rows(files) as rows:
        for i, file in enumerate(files):
            split = Split(0, (ByteRange(i, 0, file.size),))
            try:
                for row, *_ in read_split(files, split, fields):
                    if isinstance(row, Rejected):
                        invalid += 1
                        log(f"{file.position(row.number)}: {row.reason}")
                    else:
                        rows.add(i, row)
            except StellaError as error:
                damaged += 1
                log(str(error))
        repeated = 0
        for position, row_id, first in rows.repeats():
            repeated += 1
            log(f"{position}: duplicate id {quoted(row_id)}, first seen at {first}")
        return RowCheck(rows.count + invalid, invalid, repeated, damaged)


class _Rows:
    """The hashes of ids, and the positions and ids of rows, in temporary files."""

    def __init__(self, files: Sequence[InputFile]):
        folder = Path(tempfile.gettempdir())
        self.count = 0
        self._files = files
        self._repeated_ids = RepeatedIds(folder)
        self._positions = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this object
        self._ids = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._hashes: list[bytes] = []
        self._waiting: list[tuple[int, int, int, int]] = []
        self._id_bytes = 0

    def __enter__(self) -> "_Rows":
        return self

    def __exit__(self, *raised: object) -> None:
        self._repeated_ids.__exit__()
        self._positions.close()
        self._ids.close()

    def add(self, input: int, row: Row) -> None:
        name = row.id.encode()
        self._ids.write(name)
        self._waiting.append((input, row.number, self._id_bytes, self._id_bytes + len(name)))
        self._hashes.append(hash_id(row.id))
        self._id_bytes += len(name)
        self.count += 1
        if len(self._waiting) == RUN_ROWS:
            self._flush()

    def repeats(self) -> Iterator[tuple[str, str, str]]:
        """For each row with a repeated id: its position, the id, and the position of the first row with it."""
        self._flush()
        if not self._repeated_ids.find():
            return
        for start in range(0, self.count, RUN_ROWS):
            firsts = self._repeated_ids.firsts(start, min(start + RUN_ROWS, self.count))
            for i in np.flatnonzero(firsts >= 0).tolist():
                position, row_id = self._at(start + i)
                yield position, row_id, self._at(int(firsts[i]))[0]

    def _flush(self) -> None:
        self._repeated_ids.add(*hash_halves(b"".join(self._hashes)))
        self._positions.write(np.array(self._waiting, ROW_POSITION).data)
        self._hashes, self._waiting = [], []

    def _at(self, row: int) -> tuple[str, str]:
        """The position and the id of a row."""
        self._positions.seek(row * ROW_POSITION.itemsize)
        [position] = np.frombuffer(self._positions.read(ROW_POSITION.itemsize), ROW_POSITION).tolist()
        input, number, start, stop = position
        self._ids.seek(start)
        return self._files[input].position(number), self._ids.read(stop - start).decode()
