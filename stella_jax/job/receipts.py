"""Receipts: what says that a part is done.

One small file a part, in `receipts/`, written after the part file has its final name: a part counts as done when its
receipt is there and the part file has the size that it states. They stay after the job has ended. The manifest is made
of them, so keeping them means that a part found damaged or missing later is redone alone and the manifest made again,
byte for byte; and removing them would be one more step that a kill could leave half done.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.atomic import write_json
from stella_jax.job.plan import Part
from stella_jax.job.rows import Rejected

FOLDER = "receipts"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a part: its rows and tokens, its file's size and hash, and the rows that are not in it."""

    part: str
    rows: int
    tokens: int
    size: int
    sha256: str
    rejected: tuple[Rejected, ...]


def write_receipt(out: Path, receipt: Receipt) -> None:
    """Commits a part, whose file is there already."""
    fields = asdict(receipt) | {"rejected": [rejected_fields(row) for row in receipt.rejected]}
    write_json(_path(out, receipt.part), fields)


def read_receipt(out: Path, part: str) -> Receipt | None:
    """The part's receipt, None where there is none."""
    path = _path(out, part)
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_bytes())
        rejected = (Rejected(row["input"], row["row"], row["id"], row["reason"]) for row in fields.pop("rejected"))
        return Receipt(**fields, rejected=tuple(rejected))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StellaError(f"{path} is damaged ({error!r}); remove it, and the part is embedded again.") from error


def withdraw_receipt(out: Path, part: str) -> None:
    """Makes a part count as not done."""
    _path(out, part).unlink(missing_ok=True)


def survey(out: Path, parts: Sequence[Part]) -> tuple[list[Part], int]:
    """The parts that are not done, in order, and how many rows the others dealt with."""
    missing, rows = [], 0
    for part in parts:
        receipt = read_receipt(out, part.name)
        if receipt is not None and _has_size(out / part.file, receipt.size):
            rows += receipt.rows + len(receipt.rejected)
        else:
            missing.append(part)
    return missing, rows


def receipts(out: Path, parts: Sequence[Part]) -> Iterator[Receipt]:
    """The receipts of finished parts, in order, one at a time."""
    for part in parts:
        receipt = read_receipt(out, part.name)
        if receipt is None:
            raise StellaError(f"{_path(out, part.name)} has gone; run the job again.")
        yield receipt


def summary(receipt: Receipt) -> dict[str, Any]:
    """What the manifest says of a part."""
    return {
        "rows": receipt.rows,
        "rejected": len(receipt.rejected),
        "tokens": receipt.tokens,
        "size": receipt.size,
        "sha256": receipt.sha256,
    }


def rejected_fields(row: Rejected) -> dict[str, object]:
    """The row as it stands in rejected.jsonl."""
    return {"input": row.input, "row": row.number, "id": row.id, "reason": row.reason}


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _path(out: Path, part: str) -> Path:
    return out / FOLDER / f"{part}.json"
