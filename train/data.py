"""Training rows: an anchor, a positive and perhaps a negative each, from JSONL, CSV or Parquet."""

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError
from stella_jax.job.files import open_bytes
from stella_jax.job.location import Location, locate
from stella_jax.layout import listed
from train.recipe import COLUMNS

Record = tuple[int, dict[str, Any]]  # number in the file, from 1, and its fields

SHOWN_FAULTS = 3


@dataclass(frozen=True, slots=True)
class Triplets:
    """Rows of texts, column by column; `negatives` is None where the file has none.

    Attributes:
      source: the file.
      sha256: of what the rows hold, in their order.
      numbers: of each row in the file, from 1: lines of JSONL, records of CSV and Parquet.
      skipped: what is wrong with the rows that were left out; "" where none was.
    """

    anchors: Sequence[str]
    positives: Sequence[str]
    negatives: Sequence[str] | None
    source: str
    sha256: str
    numbers: Sequence[int]
    skipped: str = ""

    def __len__(self) -> int:
        return len(self.anchors)

    def take(self, rows: Sequence[int] | np.ndarray) -> list[list[str]]:
        """The texts of some rows, column by column."""
        return [[texts[row] for row in rows] for texts in self.columns.values()]

    @property
    def columns(self) -> dict[str, Sequence[str]]:
        """The texts by column name, in the order anchor, positive, negative."""
        every = zip(COLUMNS, (self.anchors, self.positives, self.negatives), strict=True)
        return {name: texts for name, texts in every if texts is not None}


def read_triplets(path: str | Path, need_negatives: bool = False, skip_faulty: bool = False) -> Triplets:
    """The rows of a file or URL: .jsonl or .csv, perhaps .gz, or .parquet; further columns are ignored.

    Args:
      need_negatives: whether a file without the column `negative` is refused.
      skip_faulty: leave out the rows that cannot be trained on.

    Raises:
      StellaError: the file cannot be read, lacks a column, holds no rows, or has rows that cannot be trained on, which
        are named: a text is missing, empty or no text, or the positive is the anchor or the negative.
    """
    location = locate(path)
    names, records = _open(location)
    columns = _columns(location, names, need_negatives)
    rows: list[tuple[str, ...]] = []
    numbers: list[int] = []
    faults: list[str] = []
    for number, fields in records:
        fault = _fault(fields, columns)
        if fault:
            faults.append(f"row {number}: {fault}")
        else:
            rows.append(tuple(fields[name] for name in columns))
            numbers.append(number)
    if faults and not skip_faulty:
        raise StellaError(f"{location}: {_some(faults)}. Mend or remove them, or set data.skip_faulty = true.")
    if not rows:
        raise StellaError(f"{location} holds no rows{' to train on: ' + _some(faults) if faults else ''}.")
    return dataclasses.replace(triplets_of(rows, str(location), numbers), skipped=_some(faults))


def _some(faults: Sequence[str]) -> str:
    more = f", and {len(faults) - SHOWN_FAULTS} rows more" if len(faults) > SHOWN_FAULTS else ""
    return "; ".join(faults[:SHOWN_FAULTS]) + more


def triplets_of(rows: Sequence[tuple[str, ...]], source: str, numbers: Sequence[int] | None = None) -> Triplets:
    """Rows (anchor, positive) or (anchor, positive, negative) as columns."""
    anchors, positives, *negatives = (list(column) for column in zip(*rows, strict=True))
    numbers = numbers or range(1, len(rows) + 1)
    return Triplets(anchors, positives, negatives[0] if negatives else None, source, _sha256(rows), numbers)


def _sha256(rows: Iterable[tuple[str, ...]]) -> str:
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(row).encode() + b"\n")
    return total.hexdigest()


def _fault(fields: dict[Any, Any], columns: Sequence[str]) -> str | None:
    """Why a row cannot be trained on."""
    if None in fields:  # where DictReader puts them
        return "it has more cells than the header"
    for name in columns:
        text = fields.get(name)
        if not isinstance(text, str):
            return f"{name} is missing" if text is None else f"{name} is {json.dumps(text, default=repr)[:40]}, no text"
        if not text.strip():
            return f"{name} is empty"
        if not text.isascii() and text != text.encode(errors="replace").decode():
            return f"{name} holds what is no Unicode text"
    if fields["anchor"] == fields["positive"]:
        return "anchor and positive are the same text"
    if "negative" in columns and fields["positive"] == fields["negative"]:
        return "positive and negative are the same text"
    return None


def _columns(location: Location, names: Sequence[str], need_negatives: bool) -> list[str]:
    needed = COLUMNS if need_negatives else COLUMNS[:2]
    for name in needed:
        if name not in names:
            why = "; the triplet loss needs it" if name == "negative" else ""
            raise StellaError(f"{location} has no column {name!r}, only {listed(names)}{why}.")
    return [name for name in COLUMNS if name in names]


def _open(location: Location) -> tuple[list[str], Iterator[Record]]:
    """The names of a file's columns, and its rows."""
    name = location.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in FORMATS or (suffix == ".parquet" and name.endswith(".gz")):
        raise StellaError(f"{location} is of no kind that is read; {listed(FORMATS)} are, all but the last as .gz too.")
    if location.kind() != "file":
        raise StellaError(f"{location} is no file that is there; paths are relative to the working directory.")
    records = _readable(location, FORMATS[suffix](location))
    return next(records), records


def _readable(location: Location, records: Iterator[Any]) -> Iterator[Any]:
    """The same, with what a damaged file raises said in a sentence."""
    try:
        yield from records
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise StellaError(f"{location} is damaged or no gzip file: {error}.") from error
    except pa.ArrowException as error:
        raise StellaError(f"{location} is no sound Parquet file: {str(error).splitlines()[0].rstrip('.')}.") from error


def _read_jsonl(location: Location) -> Iterator[Any]:
    """First the names of the columns, all that any row has, then the rows."""
    with open_bytes(location) as file:
        records = [(number, _json(location, number, line)) for number, line in enumerate(file, 1) if line.strip()]
    yield list({name: None for _, fields in records for name in fields}) or list(COLUMNS)
    yield from records


def _json(location: Location, number: int, line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StellaError(f"{location}: row {number} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise StellaError(f"{location}: row {number} is no JSON object.")
    return fields


def _read_csv(location: Location) -> Iterator[Any]:
    with open_bytes(location) as file, io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            yield [str(name) for name in reader.fieldnames or COLUMNS]
            yield from enumerate(reader, 1)
        except csv.Error as error:
            raise StellaError(f"{location}: the record at line {reader.line_num} is not CSV: {error}.") from error


def _read_parquet(location: Location) -> Iterator[Any]:
    with location.open() as stored, pq.ParquetFile(stored, page_checksum_verification=True) as file:
        yield file.schema_arrow.names
        wanted = [name for name in COLUMNS if name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(columns=wanted, use_threads=False):
            for fields in batch.to_pylist():
                number += 1
                yield number, fields


FORMATS: dict[str, Callable[[Location], Iterator[Any]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
