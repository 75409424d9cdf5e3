"""A job's directory: `job.json` says what it is, `manifest.json` that it is complete and what it holds."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.atomic import is_leftover, remove_leftovers, replacing, write_json
from stella_jax.job.plan import Part
from stella_jax.job.receipts import FOLDER, Receipt, receipts, rejected_fields, summary
from stella_jax.job.settings import differences

JOB = "job.json"
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"


def open_job(out: Path, fingerprint: dict[str, Any], parts: int) -> None:
    """Makes `out` the directory of this job, or finds that it is already, and removes what a kill left there.

    Raises:
      StellaError: it holds something else, or a job of other settings or inputs; names every difference.
    """
    if out.exists() and not out.is_dir():
        raise StellaError(f"{out} exists and is no directory.")
    if (out / JOB).exists():
        _check_same(out, fingerprint)
    elif out.exists() and not all(is_leftover(path) for path in out.iterdir()):
        raise StellaError(f"{out} exists and is not empty, and no embedding job began it; choose another directory.")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / JOB, {"parts": parts, "fingerprint": fingerprint})
    (out / FOLDER).mkdir(exist_ok=True)
    for folder in (out, out / FOLDER):
        remove_leftovers(folder)


def close_job(out: Path, fields: dict[str, Any], parts: Sequence[Part]) -> dict[str, int]:
    """Writes rejected.jsonl and, last, the manifest: `fields`, then what the receipts of all parts say.

    Returns the totals: rows, rejected, tokens.
    """
    with replacing(out / REJECTED) as file:
        file.writelines(rejected_lines(out, parts))
    entries: list[dict[str, Any]] = [
        {"file": part.file} | summary(receipt) for part, receipt in _with_receipts(out, parts)
    ]
    totals = {name: sum(entry[name] for entry in entries) for name in ("rows", "rejected", "tokens")}
    write_json(out / MANIFEST, fields | {"totals": totals, "parts": entries})
    return totals


def rejected_lines(out: Path, parts: Sequence[Part]) -> Iterator[bytes]:
    """The lines of rejected.jsonl, from the receipts."""
    for _, receipt in _with_receipts(out, parts):
        for row in receipt.rejected:
            yield json.dumps(rejected_fields(row)).encode() + b"\n"


def _with_receipts(out: Path, parts: Sequence[Part]) -> Iterator[tuple[Part, Receipt]]:
    return zip(parts, receipts(out, parts), strict=True)


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a complete job.

    Raises:
      StellaError: there is no job, or it is not complete; says how far it is.
    """
    if (out / MANIFEST).exists():
        return _read(out / MANIFEST)
    if not (out / JOB).exists():
        raise StellaError(f"{out} holds no embedding job; it has no {MANIFEST}.")
    total = _read(out / JOB).get("parts")
    done = len(list((out / FOLDER).glob("part-*.json")))
    raise StellaError(f"{out} holds {done} of the {total} parts of its job; run its embed command again to finish it.")


def _check_same(out: Path, fingerprint: dict[str, Any]) -> None:
    found = list(differences(_read(out / JOB).get("fingerprint"), fingerprint))
    if found:
        changed = "; ".join(found)
        raise StellaError(f"{out} was begun with other settings or inputs: {changed}. Choose another directory.")


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise StellaError(f"{path} is damaged: {error}.") from error
    if not isinstance(fields, dict):
        raise StellaError(f"{path} is damaged: it holds no JSON object.")
    return fields
