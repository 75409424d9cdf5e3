"""An input of a job: a file, its format, and its rows as a stream."""

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stella_jax.errors import StellaError
from stella_jax.job.csv_rows import csv_cells, read_csv
from stella_jax.job.lines import json_cells, read_lines, text_cells
from stella_jax.job.parquet_rows import parquet_cells, read_parquet
from stella_jax.job.rows import Cells, Fault, Fields, Rejected, Row, make_row
from stella_jax.layout import listed


class Format(NamedTuple):
    """How a kind of file is read, in two steps, so that rows of finished parts are skipped without parsing them.

    Attributes:
      records: (path, fields, start) -> every record from number `start`, as it lies in the file, or a Fault.
      cells: (record, fields) -> what it holds, None for a blank one; raises Fault.
    """

    records: Callable[[Path, Fields, int], Iterator[Any]]
    cells: Callable[[Any, Fields], Cells | None]


FORMATS = {
    ".jsonl": Format(read_lines, json_cells),
    ".txt": Format(read_lines, text_cells),
    ".csv": Format(read_csv, csv_cells),
    ".parquet": Format(read_parquet, parquet_cells),
}
GZIPPED = (".jsonl", ".txt", ".csv")


@dataclass(frozen=True, slots=True)
class Source:
    """One input; `name` is what its rows, and the rows without an id, are known by."""

    name: str
    path: Path
    format: Format

    def records(self, fields: Fields, start: int = 0) -> Iterator[Any]:
        """Records from number `start` (from 0), unparsed; `row` makes rows of them.

        Raises:
          StellaError: the file as a whole is damaged; says after which row.
        """
        done = start
        try:
            for record in self.format.records(self.path, fields, start):
                yield record
                done += 1
        except EOFError:
            raise StellaError(f"{self.path} is cut off after row {done}; its gzip stream has no end.") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            where = f"is damaged after row {done}" if done else "is no gzip file"
            raise StellaError(f"{self.path} {where}: {error}.") from None

    def row(self, number: int, record: Any, fields: Fields) -> Row | Rejected | None:
        """The row of record `number` (from 1), why it is none, or None where the record is blank."""
        try:
            if isinstance(record, Fault):
                raise record
            cells = self.format.cells(record, fields)
        except Fault as fault:
            return Rejected(self.name, number, None, str(fault))
        return None if cells is None else make_row(self.name, number, cells, fields)


def open_sources(paths: Sequence[Path], fields: Fields) -> list[Source]:
    """The inputs, in the order given; nothing is read yet.

    Raises:
      StellaError: one of them is missing, no file, of an unknown kind, given twice, or cannot have the ids asked for.
    """
    formats = [format_of(path) for path in paths]
    for path, kind in zip(paths, formats, strict=True):
        if kind is FORMATS[".txt"] and fields.id is not None:
            raise StellaError(f"{path} is plain text, which has no field {fields.id!r}; leave out the id field.")
    return [Source(*both) for both in zip(_names(paths), paths, formats, strict=True)]


def format_of(path: Path) -> Format:
    """The format of an existing file, by its name."""
    if path.is_dir():
        raise StellaError(f"{path} is a directory; name the files in it.")
    if not path.exists():
        raise StellaError(f"{path} does not exist.")
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    suffix = plain[plain.rfind(".") :] if "." in plain else ""
    if suffix not in (FORMATS if plain == name else GZIPPED):
        known = [*FORMATS, *(f"{kind}.gz" for kind in GZIPPED)]
        raise StellaError(f"{path} is of no kind that is read; {listed(known)} are.")
    return FORMATS[suffix]


def _names(paths: Sequence[Path]) -> list[str]:
    """File names, with as many folders before them as tell two inputs apart; the same wherever the job is started."""
    full = [path.resolve() for path in paths]
    for path in paths:
        if not _is_unicode(path.name):
            raise StellaError(f"{str(path)!r}: the name is not UTF-8; rename the file.")
    twice = [str(path) for path, count in Counter(full).items() if count > 1]
    if twice:
        raise StellaError(f"{twice[0]} is given twice.")
    return [_shortest_name(path, full) for path in full]


def _is_unicode(name: str) -> bool:
    return name == name.encode(errors="replace").decode()


def _shortest_name(path: Path, among: Sequence[Path]) -> str:
    rivals = [other for other in among if other.name == path.name]
    length = 1
    while sum(other.parts[-length:] == path.parts[-length:] for other in rivals) > 1:
        length += 1
    return "/".join(path.parts[-length:])
