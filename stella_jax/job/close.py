"""The end of a job: rows with repeated ids are removed from the parts, then the manifest is written."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.job.commits import Commit, Committed, PartName, write_commit
from stella_jax.job.job import JOB_FOLDERS, Job
from stella_jax.job.manifest import MANIFEST, manifest_fields
from stella_jax.job.part_file import write_part
from stella_jax.job.part_ids import PartIds, read_ids
from stella_jax.job.rejected import REJECTED, check_totals, rejected_lines
from stella_jax.job.repeated_ids import RepeatedIds
from stella_jax.readers.rows import Rejected
from stella_jax.storage.store import Store


def close_job(job: Job, origin: dict[str, Any], max_rejected: float) -> dict[str, int] | None:
    """Writes rejected.jsonl and finally the manifest, from the commits of all parts.

    It can be repeated after a kill, or run by two processes at once, with the same result.

    Args:
      origin: where the model came from ("model", "revision").
      max_rejected: share of the rows that may be rejected.

    Returns:
      The totals (rows, rejected, tokens), or None if commits were damaged: they were removed, and their parts must be
      embedded again.

    Raises:
      StellaError: no row could be embedded, or more rows are rejected than allowed.
    """
    store = job.store
    store.prepare("", *JOB_FOLDERS)  # removes temporary files of killed processes
    commits = _commits(job)
    if commits is not None and any(commit.own_ids for commit in commits):
        commits = _without_repeats(job, commits)
    if commits is None:
        return None
    totals = {
        "rows": sum(commit.rows for commit in commits),
        "rejected": sum(len(commit.rejected) for commit in commits),
        "tokens": sum(commit.tokens for commit in commits),
    }
    check_totals(totals, commits, max_rejected)
    sha256 = _write_rejected(store, commits)
    store.write_json(MANIFEST, manifest_fields(job.fields, job.whole_key, origin, totals, commits, sha256))
    return totals


def _write_rejected(store: Store, commits: Sequence[Commit]) -> str:
    digest = hashlib.sha256()
    with store.replacing(REJECTED) as file:
        for line in rejected_lines(commits):
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


def _commits(job: Job) -> list[Commit] | None:
    """The commits of all parts in order; None if some did not match their parts and were removed."""
    committed, sizes = Committed(job.store), job.store.sizes()
    found: list[Commit] = []
    wrong: list[PartName] = []
    names = committed.names()
    for name, commit in zip(names, committed.read(job.store, names), strict=True):
        is_of_job = name.split < len(job.splits) and commit and commit.key == job.key(job.splits[name.split])
        if commit is not None and is_of_job and (not commit.rows or sizes.get(name.file) == commit.size):
            found.append(commit)
        else:
            wrong.append(name)
    committed.invalidate(job.store, wrong)
    is_whole = all(committed.is_finished(split.number) for split in job.splits)
    return found if is_whole and not wrong else None


def _without_repeats(job: Job, commits: Sequence[Commit]) -> list[Commit] | None:
    """Removes rows whose id an earlier row has, in the order of the inputs; returns the commits after that."""
    with RepeatedIds(job.store.temp_dir) as repeated_ids:
        bounds = [0]
        for commit in commits:
            if _embedded(commit):
                ids = _ids_of(job, commit)
                if ids is None:
                    return _invalidated(job, commit)
                repeated_ids.add(ids.high, ids.low)
            bounds.append(repeated_ids.rows)
        if not repeated_ids.find():
            return list(commits)
        found: list[Commit] = []
        for i, commit in enumerate(commits):
            firsts = repeated_ids.firsts(bounds[i], bounds[i + 1])
            reduced = _reduced(job, commit, firsts, commits, bounds)
            if reduced is None:
                return _invalidated(job, commit)
            found.append(reduced)
        return found


def _ids_of(job: Job, commit: Commit) -> PartIds | None:
    """The ids of a part; None if they cannot be read, or are not as many as its rows."""
    try:
        ids = read_ids(job.store, commit.name)
    except (OSError, pa.ArrowException):
        return None
    return ids if len(ids.high) == _embedded(commit) else None


def _reduced(
    job: Job, commit: Commit, firsts: np.ndarray, commits: Sequence[Commit], bounds: Sequence[int]
) -> Commit | None:
    """The commit of a part without its repeats; None if the part is damaged, or others were removed earlier.

    Args:
      firsts: for each of its rows, see `RepeatedIds.firsts`.
      bounds: the position of the first row of each of `commits`.
    """
    repeats = np.flatnonzero(firsts >= 0)
    if tuple(repeats.tolist()) == commit.repeats:
        return commit
    if commit.repeats:
        return None
    owners = np.searchsorted(bounds, firsts[repeats], side="right") - 1
    rows = firsts[repeats] - np.asarray(bounds)[owners]
    places = [(commits[owner].name, int(row)) for owner, row in zip(owners, rows, strict=True)]
    return _remove_repeats(job, commit, repeats, places)


def _embedded(commit: Commit) -> int:
    """Rows of a part before repeats were removed."""
    return commit.rows + len(commit.repeats)


def _invalidated(job: Job, commit: Commit) -> None:
    Committed(job.store).invalidate(job.store, [commit.name])


def _remove_repeats(
    job: Job, commit: Commit, repeats: np.ndarray, firsts: Sequence[tuple[PartName, int]]
) -> Commit | None:
    """Writes a part without these rows, then its commit; None if the part does not match its commit.

    Args:
      firsts: for each, the part and the original row of the first row with the same id.
    """
    try:
        with job.store.open(commit.name.file) as file:
            table = pq.read_table(file, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None
    if table.num_rows != commit.rows:
        return None
    keep = np.ones(table.num_rows, bool)
    keep[repeats] = False
    ids = read_ids(job.store, commit.name)
    row_ids = table["id"].take(pa.array(repeats)).to_pylist()
    rejected = [
        job.inputs[ids.inputs[row]].rejected_fields(_repeat(job, ids, row, row_id, first))
        for row, row_id, first in zip(repeats.tolist(), row_ids, firsts, strict=True)
    ]
    kept = table.filter(pa.array(keep))
    size, sha256 = write_part(job.store, commit.name.file, kept) if kept.num_rows else (0, "")
    reduced = replace(
        commit,
        rows=kept.num_rows,
        tokens=sum(kept["n_tokens"].to_pylist()),
        size=size,
        sha256=sha256,
        rejected=(*commit.rejected, *rejected),
        repeats=tuple(repeats.tolist()),
    )
    write_commit(job.store, reduced)
    if not kept.num_rows:
        job.store.remove(commit.name.file)
    return reduced


def _repeat(job: Job, ids: PartIds, row: int, row_id: str, first: tuple[PartName, int]) -> Rejected:
    name, first_row = first
    where = _cached_ids(job.store, name)
    place = job.position(int(where.inputs[first_row]), int(where.numbers[first_row]))
    file = job.inputs[ids.inputs[row]]
    return Rejected(file.name, int(ids.numbers[row]), row_id, f"duplicate id, first seen at {place}")


_cached_ids = lru_cache(16)(read_ids)  # the first rows are usually in few parts
