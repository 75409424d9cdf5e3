"""Checks every byte of a job, and invalidates the commits of damaged parts, so that `embed` makes them again."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError, first_line
from stella_jax.job.commits import Commit, Committed, part_name
from stella_jax.job.computed import column_names
from stella_jax.job.duplicates import Duplicates
from stella_jax.job.job import FOLDERS, JOB
from stella_jax.job.manifest import MANIFEST, REJECTED, read_manifest, rejected_lines
from stella_jax.job.part_ids import hash_id
from stella_jax.job.write import vectors_of
from stella_jax.storage.atomic import FULL
from stella_jax.storage.store import Damaged, Store, open_store


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found.

    Attributes:
      faults: sentences, each about one file.
      invalidated: the parts that `embed` will make again.
    """

    rows: int
    sampled: int
    faults: tuple[str, ...]
    invalidated: tuple[str, ...]


def verify_job(
    out: str | Path,
    sample: int = 0,
    model_name: str | None = None,
    revision: str | None = None,
    inputs: Sequence[str | Path] = (),
) -> Verdict:
    """Checks hashes, pages, row counts, values and ids of a finished job.

    Memory does not grow with the corpus. Nothing but commits of damaged parts is changed, and not even these where the
    output is read-only.

    Args:
      sample: how many rows to embed again besides; needs the inputs and the model.
      model_name: where the model is, if not where it was; at `revision`.
      inputs: where the inputs are, likewise.

    Raises:
      StellaError: there is no finished job at `out`, its disk is full, or what the sample needs is not there.
    """
    store = open_store(out)
    manifest, committed = read_manifest(store), Committed(store)
    names = committed.names()
    commits = {str(commit.name): commit for commit in committed.read(store, names) if commit}
    faults: list[str] = []
    damaged: list[str] = []
    rows = 0
    try:
        with Duplicates(_temp_dir(store)) as ids:
            for entry in manifest["parts"]:
                name = entry["file"].removesuffix(".parquet")
                found = list(_part_faults(store, entry, commits.get(name), column_names(manifest["fingerprint"]), ids))
                faults += [f"{entry['file']}: {fault}" for fault in found]
                damaged += [name] if found else []
                rows += entry["rows"]
            repeated = ids.find()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StellaError(
            f"the disk of {store} is full, and the check needs 24 bytes a row there; make room and verify again."
        ) from error
    faults += [f"{repeated} ids stand in more than one row"] if repeated and not damaged else []
    faults += _whole_faults(store, manifest, None if damaged else list(commits.values()))
    sampled = 0
    if sample and not faults:
        for name, count, fault in _spot_check(store, manifest, sample, inputs, model_name, revision):
            sampled += count
            faults += [f"{name.file}: {fault}"] if fault else []
            damaged += [str(name)] if fault else []
    return Verdict(rows, sampled, tuple(faults), tuple(_invalidate(store, committed, damaged)))


def _invalidate(store: Store, committed: Committed, damaged: Sequence[str]) -> Iterator[str]:
    for name in damaged:
        with suppress(OSError, StellaError):  # read-only: what is wrong is said all the same
            committed.invalidate(store, [each for each in [part_name(name)] if each in committed.files])
            yield name


def _temp_dir(store: Store) -> Path:
    """Where temporary files go: what may only be read can be checked, too."""
    return store.temp_dir if os.access(store.temp_dir, os.W_OK) else Path(tempfile.gettempdir())


def _spot_check(
    store: Store, manifest: dict[str, Any], rows: int, inputs: Sequence[str | Path], *model: str | None
) -> Iterator[tuple[Any, int, str]]:
    """Of each part that was looked into: how many rows were embedded again, and what is wrong with them, or ""."""
    from stella_jax.job.model import load_model  # here: the check of bytes needs no JAX
    from stella_jax.job.spot_check import spot_check

    yield from spot_check(store, manifest, load_model(store, manifest, manifest["dims"], *model), rows, inputs)


def _part_faults(
    store: Store, entry: dict[str, Any], commit: Commit | None, columns: Sequence[str], ids: Duplicates
) -> Iterator[str]:
    """What is wrong with a part; adds its ids."""
    if commit is None or commit.summary() != entry:
        yield f"its commit is missing, damaged, or not what {MANIFEST} says"
    if commit and commit.ids_sha256 and _sha256(store, commit.name.ids_file) != commit.ids_sha256:
        yield "its ids file is missing or damaged"
    if not entry["rows"]:
        return
    size = store.size(entry["file"])
    if size is None:
        yield "it is missing"
        return
    if size != entry["size"]:
        yield f"it has {size} bytes, not the {entry['size']} that were written"
        return
    if _sha256(store, entry["file"]) != entry["sha256"]:
        yield "its sha256 is not that of what was written"
        return
    yield from _content_faults(store, entry, columns, ids)


def _sha256(store: Store, name: str) -> str:
    try:
        with store.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"


def _content_faults(store: Store, entry: dict[str, Any], columns: Sequence[str], ids: Duplicates) -> Iterator[str]:
    """What is wrong with the rows of a file whose bytes are as they were written."""
    rows = tokens = infinite = 0
    try:
        with store.open(entry["file"]) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            for batch in file.iter_batches(columns=["id", *columns, "n_tokens"]):
                hashes = b"".join(hash_id(row_id) for row_id in batch.column("id").to_pylist())
                halves = np.frombuffer(hashes, "<u8").reshape(-1, 2)
                ids.add(halves[:, 0], halves[:, 1])
                rows += batch.num_rows
                vectors = [vectors_of(batch.column(name)) for name in columns]
                infinite += int((~np.isfinite(np.concatenate(vectors, axis=1))).any(axis=1).sum())
                tokens += int(batch.column("n_tokens").to_numpy().sum())
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        yield f"it cannot be read ({first_line(error)})"
        return
    if (rows, tokens) != (entry["rows"], entry["tokens"]):
        yield f"it holds {rows} rows of {tokens} tokens, not {entry['rows']} of {entry['tokens']}"
    if infinite:
        yield f"{infinite} of its rows are not finite"


def _whole_faults(store: Store, manifest: dict[str, Any], commits: Sequence[Commit] | None) -> Iterator[str]:
    """What is wrong with the job as a whole; commits are None where some of the parts are damaged."""
    if commits is not None:
        expected = b"".join(rejected_lines(commits))
        if store.size(REJECTED) is None or store.read(REJECTED) != expected:
            yield f"{REJECTED} is not what the commits say; run its command again"
    yield from _job_faults(store, manifest)
    known = {part["file"] for part in manifest["parts"]}
    strays = sorted(name for name in store.sizes() if name.startswith("part-") and name not in known)
    if strays:
        yield f"files of no part of this job: {', '.join(strays)}"
    left = [name for folder in ("", *FOLDERS) for name in store.leftovers(folder)]
    if left:
        yield f"files that a killed process was writing: {', '.join(left)}; run its command again to remove them"


def _job_faults(store: Store, manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the file that says what the job is."""
    try:
        fields = store.read_json(JOB)
    except FileNotFoundError:
        yield f"{JOB} is missing; run its command again"
    except Damaged as error:
        yield f"{str(error).rstrip('.')}; run its command again"
    else:
        if any(fields[key] != manifest[key] for key in ("fingerprint", "inputs")):
            yield f"{JOB} is of another job than {MANIFEST}; run its command again"
