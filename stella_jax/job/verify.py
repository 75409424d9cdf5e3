"""Checks every byte of a job, and withdraws the receipts of damaged parts, so that `embed` redoes them."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError
from stella_jax.job.atomic import FULL
from stella_jax.job.duplicates import Duplicates
from stella_jax.job.job import FOLDERS, JOB
from stella_jax.job.manifest import MANIFEST, REJECTED, read_manifest, rejected_lines
from stella_jax.job.plan import Part, plan_parts
from stella_jax.job.plan_files import PlanFiles
from stella_jax.job.receipts import receipts, sound_receipt, summary, withdraw_receipt
from stella_jax.job.store import Damaged, Store, open_store
from stella_jax.job.write import column_of, vectors_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found: sentences, each about one file, and the parts that `embed` will redo."""

    rows: int
    sampled: int
    faults: tuple[str, ...]
    withdrawn: tuple[str, ...]


def verify_job(
    out: str | Path,
    sample: int = 0,
    model_name: str | None = None,
    revision: str | None = None,
    inputs: Sequence[str | Path] = (),
) -> Verdict:
    """Checks hashes, pages, row counts, values and ids of a finished job.

    Memory does not grow with the corpus. Nothing but receipts of damaged parts is changed.

    Args:
      sample: how many rows to embed again besides; needs the inputs and the model.
      model_name: where the model is, if not where it was; at `revision`.
      inputs: where the inputs are, likewise.

    Raises:
      StellaError: there is no finished job at `out`, its disk is full, or what the sample needs is not there.
    """
    store = open_store(out)
    manifest = read_manifest(store)
    parts = plan_parts([entry["records"] for entry in manifest["inputs"]], manifest["part_rows"])
    faults: list[str] = []
    damaged: list[str] = []
    ids = Duplicates(_scratch(store))
    rows = 0
    try:
        for part, entry in zip(parts, manifest["parts"], strict=True):
            found = list(_part_faults(store, part, entry, manifest["dims"], ids, rows))
            faults += [f"{part.file}: {fault}" for fault in found]
            damaged += [part.name] if found else []
            rows += entry["rows"]
        repeated = ids.find()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StellaError(
            f"the disk of {store} is full, and the check needs 24 bytes a row there; make room and verify again."
        ) from error
    finally:
        ids.close()
    faults += [f"{repeated} ids stand in more than one row"] if repeated and not damaged else []
    faults += _whole_faults(store, manifest, parts, damaged)
    sampled: Sequence[tuple[Part, int, str]] = ()
    if sample and not faults:
        sampled = _sample(store, manifest, sample, inputs, model_name, revision)
    for part, _, fault in sampled:
        faults += [f"{part.file}: {fault}"] if fault else []
        damaged += [part.name] if fault else []
    for name in damaged:
        withdraw_receipt(store, name)
    return Verdict(rows, sum(count for _, count, _ in sampled), tuple(faults), tuple(damaged))


def _scratch(store: Store) -> Path:
    """Where temporary files go: what may only be read can be checked, too."""
    return store.scratch if os.access(store.scratch, os.W_OK) else Path(tempfile.gettempdir())


def _sample(
    store: Store, manifest: dict[str, Any], rows: int, inputs: Sequence[str | Path], *model: str | None
) -> Sequence[tuple[Part, int, str]]:
    """Of each part that was looked into: how many rows were embedded again, and what is wrong with them, or ""."""
    from stella_jax.job.model import load_model  # here: the check of bytes needs no JAX
    from stella_jax.job.sample import sample

    return list(sample(store, manifest, load_model(store, manifest, manifest["dims"], *model), rows, inputs))


def _part_faults(
    store: Store, part: Part, entry: dict[str, Any], dims: Sequence[int], ids: Duplicates, position: int
) -> Iterator[str]:
    """What is wrong with a part; its ids are added from `position` on."""
    size = store.size(part.file)
    if size is None:
        yield "it is missing"
        return
    receipt = sound_receipt(store, part.name)
    if receipt is None or summary(receipt) != {key: entry[key] for key in summary(receipt)}:
        yield f"its receipt is missing, damaged, or not what {MANIFEST} says"
    if size != entry["size"]:
        yield f"it has {size} bytes, not the {entry['size']} that were written"
        return
    with store.open(part.file) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            yield "its sha256 is not that of what was written"
            return
    yield from _content_faults(store, part, entry, dims, ids, position)


def _content_faults(
    store: Store, part: Part, entry: dict[str, Any], dims: Sequence[int], ids: Duplicates, position: int
) -> Iterator[str]:
    """What is wrong with the rows of a file whose bytes are as they were written."""
    rows = tokens = infinite = 0
    columns = [column_of(dim, dims) for dim in dims]
    try:
        with store.open(part.file) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            for batch in file.iter_batches(columns=["id", *columns, "n_tokens"]):
                for row_id in batch.column("id").to_pylist():
                    ids.add(row_id, position + rows)
                    rows += 1
                vectors = [vectors_of(batch.column(name)) for name in columns]
                infinite += int((~np.isfinite(np.concatenate(vectors, axis=1))).any(axis=1).sum())
                tokens += int(batch.column("n_tokens").to_numpy().sum())
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        yield f"it cannot be read ({(str(error).strip().splitlines() or ['no reason given'])[0]})"
        return
    if (rows, tokens) != (entry["rows"], entry["tokens"]):
        yield f"it holds {rows} rows of {tokens} tokens, not {entry['rows']} of {entry['tokens']}"
    if infinite:
        yield f"{infinite} of its rows are not finite"


def _whole_faults(store: Store, manifest: dict[str, Any], parts: list[Part], damaged: list[str]) -> Iterator[str]:
    """What is wrong with the job as a whole."""
    expected = sum(entry["rows"] for entry in manifest["inputs"])
    written = sum(entry["rows"] + entry["rejected"] for entry in manifest["parts"])
    if written != expected:
        yield f"{MANIFEST} accounts for {written} rows, the inputs have {expected}"
    if not damaged and not _same_rejected(store, parts):
        yield f"{REJECTED} is not what the receipts say; run the embed command again"
    yield from _plan_faults(store, manifest)
    known = {part.file for part in parts}
    strays = sorted(name for name in store.sizes() if name.startswith("part-") and name not in known)
    if strays:
        yield f"files of no part of this job: {', '.join(strays)}"
    left = [name for folder in ("", *FOLDERS) for name in store.leftovers(folder)]
    if left:
        yield f"files that a killed process was writing: {', '.join(left)}; run the embed command again to remove them"


def _plan_faults(store: Store, manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the files that say what the job is."""
    try:
        fields = store.read_json(JOB)
        PlanFiles(store, fields["plan"])
    except FileNotFoundError:
        yield f"{JOB} is missing; run the embed command again"
    except Damaged as error:
        yield f"{str(error).rstrip('.')}; run the embed command again"
    else:
        if fields["fingerprint"] != manifest["fingerprint"]:
            yield f"{JOB} is of another job than {MANIFEST}; run the embed command again"


def _same_rejected(store: Store, parts: list[Part]) -> bool:
    expected = b"".join(line for receipt in receipts(store, parts) for line in rejected_lines(receipt))
    return store.size(REJECTED) is not None and store.read(REJECTED) == expected
