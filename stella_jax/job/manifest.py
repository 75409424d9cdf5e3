"""`_job/manifest.json`: exists once a job is complete, and lists its parts."""

import hashlib
from collections.abc import Sequence
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.commits import Commit, Committed
from stella_jax.job.job import JOB, Job
from stella_jax.job.rejected import REJECTED
from stella_jax.storage.store import DamagedFileError, Store

MANIFEST = "_job/manifest.json"

OPTIONS = (
    "dims",
    "dtype",
    "max_seq_length",
    "prompt",
    "normalize",
    "precision",
    "text_field",
    "query_field",
    "activation",
    "id_field",
    "keep",
    "part_rows",
)


def manifest_fields(
    job_fields: dict[str, Any],
    key: str,
    origin: dict[str, Any],
    totals: dict[str, int],
    commits: Sequence[Commit],
    rejected_sha256: str,
) -> dict[str, Any]:
    """The content of manifest.json.

    Args:
      job_fields: the content of job.json.
      key: see `Job.whole_key`.
      origin: where the model came from ("model", "revision").
      totals: rows, rejected and tokens of the job.
      commits: of all parts, in order.
    """
    fingerprint = job_fields["fingerprint"]
    options = {"dim": fingerprint["dims"][0]} | {name: fingerprint[name] for name in OPTIONS if name in fingerprint}
    parts = [commit.summary() for commit in commits]
    return (
        origin
        | options
        | {"job": key, "inputs": job_fields["inputs"], "fingerprint": fingerprint, "totals": totals}
        | {"ranges": job_fields["ranges"], "rejected_sha256": rejected_sha256, "parts": parts}
    )


def read_manifest(store: Store) -> dict[str, Any]:
    """The manifest of a complete job.

    Raises:
      StellaError: there is no job, it is not complete (says how many parts there are), or the manifest is damaged.
    """
    if store.size(MANIFEST) is not None:
        try:
            return store.read_json(MANIFEST)
        except DamagedFileError as error:
            raise StellaError(f"{store}/{MANIFEST}: damaged; run the job again.") from error
    if store.size(JOB) is None:
        raise StellaError(f"{store}: not the output of embed or score; it has no {MANIFEST}.")
    parts = len(Committed(store).files)
    raise StellaError(f"{store}: not complete (parts so far: {parts}); run the job again to finish it.")


def finished_totals(job: Job) -> dict[str, int] | None:
    """The totals of a complete job with all of its files; None otherwise."""
    store = job.store
    try:
        fields = store.read_json(MANIFEST) if store.size(MANIFEST) is not None else {}
    except DamagedFileError:
        return None
    if fields.get("job") != job.whole_key or store.size(REJECTED) is None:
        return None
    if hashlib.sha256(store.read(REJECTED)).hexdigest() != fields["rejected_sha256"]:
        return None
    sizes, committed = store.sizes(), Committed(store)
    is_whole = all(committed.is_finished(split.number) for split in job.splits)
    are_there = all(not part["rows"] or sizes.get(part["file"]) == part["size"] for part in fields["parts"])
    return fields["totals"] if is_whole and are_there else None
