"""Checks every byte of a job, and withdraws the receipts of damaged parts, so that `embed` redoes them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError
from stella_jax.job.duplicates import Duplicates
from stella_jax.job.manifest import MANIFEST, REJECTED, read_manifest, rejected_lines
from stella_jax.job.plan import Part, plan_parts
from stella_jax.job.receipts import Receipt, read_receipt, summary, withdraw_receipt


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found: sentences, each about one file, and the parts that `embed` will redo."""

    rows: int
    faults: tuple[str, ...]
    withdrawn: tuple[str, ...]


def verify_job(out: Path) -> Verdict:
    """Checks hashes, pages, row counts, values and ids of a finished job.

    Memory does not grow with the corpus. Nothing but receipts of damaged parts is changed.

    Raises:
      StellaError: there is no finished job at `out`.
    """
    manifest = read_manifest(out)
    parts = plan_parts([entry["records"] for entry in manifest["inputs"]], manifest["part_rows"])
    faults: list[str] = []
    damaged: list[str] = []
    ids = Duplicates(out)
    rows = 0
    try:
        for part, entry in zip(parts, manifest["parts"], strict=True):
            found = [f"{part.file}: {fault}" for fault in _part_faults(out, part, entry, manifest["dim"], ids, rows)]
            faults += found
            damaged += [part.name] if found else []
            rows += entry["rows"]
        repeated = ids.find()
    finally:
        ids.close()
    faults += [f"{repeated} ids stand in more than one row"] if repeated and not damaged else []
    faults += _whole_faults(out, manifest, parts, damaged)
    for name in damaged:
        withdraw_receipt(out, name)
    return Verdict(rows, tuple(faults), tuple(damaged))


def _part_faults(
    out: Path, part: Part, entry: dict[str, Any], dim: int, ids: Duplicates, position: int
) -> Iterator[str]:
    """What is wrong with a part; its ids are added from `position` on."""
    path = out / part.file
    if not path.is_file():
        yield "it is missing"
        return
    receipt = _receipt(out, part)
    if receipt is None or summary(receipt) != {key: entry[key] for key in summary(receipt)}:
        yield f"its receipt is missing, damaged, or not what {MANIFEST} says"
    if path.stat().st_size != entry["size"]:
        yield f"it has {path.stat().st_size} bytes, not the {entry['size']} that were written"
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            yield "its sha256 is not that of what was written"
            return
    yield from _content_faults(path, entry, dim, ids, position)


def _content_faults(path: Path, entry: dict[str, Any], dim: int, ids: Duplicates, position: int) -> Iterator[str]:
    """What is wrong with the rows of a file whose bytes are as they were written."""
    rows = tokens = infinite = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(columns=["id", "embedding", "n_tokens"]):
                for row_id in batch.column("id").to_pylist():
                    ids.add(row_id, position + rows)
                    rows += 1
                vectors = batch.column("embedding").flatten().to_numpy().reshape(-1, dim)
                infinite += int((~np.isfinite(vectors)).any(axis=1).sum())
                tokens += int(batch.column("n_tokens").to_numpy().sum())
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        yield f"it cannot be read ({(str(error).strip().splitlines() or ['no reason given'])[0]})"
        return
    if (rows, tokens) != (entry["rows"], entry["tokens"]):
        yield f"it holds {rows} rows of {tokens} tokens, not {entry['rows']} of {entry['tokens']}"
    if infinite:
        yield f"{infinite} of its rows are not finite"


def _whole_faults(out: Path, manifest: dict[str, Any], parts: list[Part], damaged: list[str]) -> Iterator[str]:
    """What is wrong with the job as a whole."""
    expected = sum(entry["rows"] for entry in manifest["inputs"])
    written = sum(entry["rows"] + entry["rejected"] for entry in manifest["parts"])
    if written != expected:
        yield f"{MANIFEST} accounts for {written} rows, the inputs have {expected}"
    if not damaged and not _same_rejected(out, parts):
        yield f"{REJECTED} is not what the receipts say; run the embed command again"
    known = {part.file for part in parts}
    strays = sorted(path.name for path in out.glob("part-*") if path.name not in known)
    if strays:
        yield f"files of no part of this job: {', '.join(strays)}"


def _same_rejected(out: Path, parts: list[Part]) -> bool:
    path = out / REJECTED
    return path.is_file() and path.read_bytes() == b"".join(rejected_lines(out, parts))


def _receipt(out: Path, part: Part) -> Receipt | None:
    try:
        return read_receipt(out, part.name)
    except StellaError:
        return None
