"""Checks every byte of a job, and removes the commits of damaged parts, so that the job redoes them."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.errors import StellaError, first_line
from stella_jax.job.commits import Commit, Committed, PartName
from stella_jax.job.job import JOB, JOB_FOLDERS
from stella_jax.job.manifest import MANIFEST, read_manifest
from stella_jax.job.output_columns import column_names
from stella_jax.job.part_file import vectors_of
from stella_jax.job.part_ids import hash_halves, hash_id
from stella_jax.job.rejected import REJECTED, rejected_lines
from stella_jax.job.repeated_ids import RepeatedIds
from stella_jax.storage.atomic import FULL
from stella_jax.storage.store import DamagedFileError, Store, open_store


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check.

    Attributes:
      rows: in the job.
      sampled: rows that were computed again.
      faults: one sentence per fault.
      invalidated: parts that the job will redo.
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

    Memory does not grow with the corpus. Only commits of damaged parts are changed, if the output is writable.

    Args:
      sample: number of rows to compute again, which needs the inputs and the model.
      model_name: where the model is now, at `revision`, if it has moved.
      inputs: the inputs that have moved, where they are now.

    Raises:
      StellaError: there is no finished job at `out`, its disk is full, or the inputs or the model are missing.
    """
    store = open_store(out)
    manifest, committed = read_manifest(store), Committed(store)
    names = committed.names()
    commits = {str(commit.name): commit for commit in committed.read(store, names) if commit}
    faults, damaged = _check_parts(store, manifest, commits)
    faults += _whole_faults(store, manifest, None if damaged else list(commits.values()))
    sampled = 0
    if sample and not faults:
        for name, count, fault in _spot_check(store, manifest, sample, inputs, model_name, revision):
            sampled += count
            faults += [f"{name.file}: {fault}"] if fault else []
            damaged += [str(name)] if fault else []
    rows = sum(entry["rows"] for entry in manifest["parts"])
    return Verdict(rows, sampled, tuple(faults), tuple(_invalidate(store, committed, damaged)))


def _check_parts(store: Store, manifest: dict[str, Any], commits: Mapping[str, Commit]) -> tuple[list[str], list[str]]:
    """The faults of all parts and of their ids together, and the names of the parts that have any."""
    faults: list[str] = []
    damaged: list[str] = []
    columns = column_names(manifest["fingerprint"])
    try:
        with RepeatedIds(_temp_dir(store)) as ids:
            for entry in manifest["parts"]:
                name = entry["file"].removesuffix(".parquet")
                found = list(_part_faults(store, entry, commits.get(name), columns, ids))
                faults += [f"{entry['file']}: {fault}" for fault in found]
                damaged += [name] if found else []
            repeated = ids.find()
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StellaError(
            f"{store}: disk full, and the check needs 24 bytes per row there; free some space and verify again."
        ) from error
    faults += [f"{repeated} rows repeat the id of another"] if repeated and not damaged else []
    return faults, damaged


def _invalidate(store: Store, committed: Committed, damaged: Sequence[str]) -> Iterator[str]:
    for name in damaged:
        with suppress(OSError, StellaError):  # read-only: the faults are reported all the same
            committed.invalidate(store, [each for each in [PartName.parse(name)] if each in committed.files])
            yield name


def _temp_dir(store: Store) -> Path:
    """The folder for temporary files, elsewhere if the output is read-only."""
    return store.temp_dir if os.access(store.temp_dir, os.W_OK) else Path(tempfile.gettempdir())


def _spot_check(
    store: Store, manifest: dict[str, Any], rows: int, inputs: Sequence[str | Path], *model: str | None
) -> Iterator[tuple[Any, int, str]]:
    """For each sampled part: its name, the number of rows computed again, and their fault, "" for none."""
    from stella_jax.job.model import load_model  # here: the other checks need no JAX
    from stella_jax.job.spot_check import spot_check

    loaded = load_model(store, manifest, manifest["dims"], *model)
    loaded.max_seq_length = manifest["max_seq_length"]
    yield from spot_check(store, manifest, loaded, rows, inputs)


def _part_faults(
    store: Store, entry: dict[str, Any], commit: Commit | None, columns: Sequence[str], ids: RepeatedIds
) -> Iterator[str]:
    """The faults of a part; adds its ids to `ids`."""
    if commit is None or commit.summary() != entry:
        yield f"its commit is missing, damaged, or different from {MANIFEST}"
    if commit and commit.ids_sha256 and _sha256(store, commit.name.ids_file) != commit.ids_sha256:
        yield "its ids file is missing or damaged"
    if not entry["rows"]:
        return
    size = store.size(entry["file"])
    if size is None:
        yield "missing"
        return
    if size != entry["size"]:
        yield f"{size} bytes, not the {entry['size']} that were written"
        return
    if _sha256(store, entry["file"]) != entry["sha256"]:
        yield "its sha256 is different from when it was written"
        return
    yield from _content_faults(store, entry, columns, ids)


def _sha256(store: Store, name: str) -> str:
    try:
        with store.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"


def _content_faults(store: Store, entry: dict[str, Any], columns: Sequence[str], ids: RepeatedIds) -> Iterator[str]:
    """The faults of the rows of a file whose hash is right."""
    rows = tokens = not_finite = 0
    try:
        with store.open(entry["file"]) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            for batch in file.iter_batches(columns=["id", *columns, "n_tokens"]):
                hashes = b"".join(hash_id(row_id) for row_id in batch.column("id").to_pylist())
                ids.add(*hash_halves(hashes))
                rows += batch.num_rows
                vectors = [vectors_of(batch.column(name)) for name in columns]
                not_finite += int((~np.isfinite(np.concatenate(vectors, axis=1))).any(axis=1).sum())
                tokens += int(batch.column("n_tokens").to_numpy().sum())
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        yield f"cannot be read ({first_line(error)})"
        return
    if (rows, tokens) != (entry["rows"], entry["tokens"]):
        yield f"{rows} rows with {tokens} tokens, not {entry['rows']} with {entry['tokens']}"
    if not_finite:
        yield f"{not_finite} of its rows are not finite"


def _whole_faults(store: Store, manifest: dict[str, Any], commits: Sequence[Commit] | None) -> Iterator[str]:
    """The faults of the job as a whole; commits are None if some parts are damaged."""
    if commits is not None:
        expected = b"".join(rejected_lines(commits))
        if store.size(REJECTED) is None or store.read(REJECTED) != expected:
            yield f"{REJECTED}: different from the commits; run the job again"
    yield from _job_faults(store, manifest)
    known = {part["file"] for part in manifest["parts"]}
    strays = sorted(name for name in store.sizes() if name.startswith("part-") and name not in known)
    if strays:
        yield f"files that do not belong to this job: {', '.join(strays)}"
    left = [name for folder in ("", *JOB_FOLDERS) for name in store.leftovers(folder)]
    if left:
        yield f"temporary files of killed processes: {', '.join(left)}; run the job again to remove them"


def _job_faults(store: Store, manifest: dict[str, Any]) -> Iterator[str]:
    """The faults of job.json."""
    try:
        fields = store.read_json(JOB)
    except FileNotFoundError:
        yield f"{JOB}: missing; run the job again"
    except DamagedFileError as error:
        yield f"{str(error).rstrip('.')}; run the job again"
    else:
        if any(fields[key] != manifest[key] for key in ("fingerprint", "inputs")):
            yield f"{JOB}: belongs to a different job than {MANIFEST}; run the job again"
