"""`manifest.json` says that a job is complete and what it holds; `rejected.jsonl` has the rows that are not in it."""

import json
from collections.abc import Iterator
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.job import FOLDERS, JOB, Job, check_rejected
from stella_jax.job.receipts import FOLDER, Receipt, receipts, rejected_fields, summary
from stella_jax.job.store import Damaged, Store

MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"

SETTINGS = ("dims", "dtype", "max_seq_length", "prompt", "normalize", "text_field", "id_field", "part_rows")


def close_job(job: Job, origin: dict[str, Any], max_rejected: float) -> dict[str, int]:
    """Writes rejected.jsonl and, last, the manifest, from what the receipts of all parts say.

    What processes were writing that died under way is removed.

    Args:
      origin: where the model came from ("model", "revision").
      max_rejected: share of the rows that may be rejected.

    Returns the totals: rows, rejected, tokens.

    Raises:
      StellaError: more are, counting those that came out not finite in any process of any run.
    """
    job.store.prepare(*FOLDERS)
    entries: list[dict[str, Any]] = []
    with job.store.replacing(REJECTED) as file:
        for part, receipt in zip(job.parts, receipts(job.store, job.parts), strict=True):
            entries.append({"file": part.file} | summary(receipt))
            file.writelines(rejected_lines(receipt))
    totals = {name: sum(entry[name] for entry in entries) for name in ("rows", "rejected", "tokens")}
    check_rejected(totals["rejected"], job.plan.rows, max_rejected)
    settings = {"dim": job.fingerprint["dims"][0]} | {name: job.fingerprint[name] for name in SETTINGS}
    rest = {"inputs": job.fields["inputs"], "fingerprint": job.fingerprint, "totals": totals, "parts": entries}
    job.store.write_json(MANIFEST, origin | settings | rest)
    return totals


def rejected_lines(receipt: Receipt) -> Iterator[bytes]:
    """The lines of rejected.jsonl for a part."""
    for row in receipt.rejected:
        yield json.dumps(rejected_fields(row)).encode() + b"\n"


def read_manifest(store: Store) -> dict[str, Any]:
    """The manifest of a complete job.

    Raises:
      StellaError: there is no job, it is not complete (says how far it is), or the manifest is damaged.
    """
    if store.size(MANIFEST) is not None:
        try:
            return store.read_json(MANIFEST)
        except Damaged as error:
            raise StellaError(f"{store}/{MANIFEST} is damaged; run the embed command again to make it anew.") from error
    if store.size(JOB) is None:
        raise StellaError(f"{store} holds no embedding job; it has no {MANIFEST}.")
    total = store.read_json(JOB).get("parts")
    done = len(store.sizes(FOLDER))
    held = f"{done} of the {total} parts"
    raise StellaError(f"{store} holds {held} of its job; run its embed command again to finish it.")
