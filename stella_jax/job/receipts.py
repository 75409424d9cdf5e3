"""Receipts: what says that a part is done.

One small file a part, in `receipts/`, written after the part file has its final name: a part counts as done when its
receipt is there and the part file has the size that it states. They stay after the job has ended. The manifest is made
of them, so keeping them means that a part found damaged or missing later is redone alone and the manifest made again,
byte for byte; and removing them would be one more step that a kill could leave half done.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.plan import Part
from stella_jax.job.rows import Rejected
from stella_jax.job.store import Damaged, Store

FOLDER = "receipts"

# Receipts read at once: a store takes tens of milliseconds for each.
READERS = 16


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a part: its rows and tokens, its file's size and hash, and the rows that are not in it.

    `job` is the job's key: a process of a job that was here before, and still lives, cannot pass its part off.
    """

    job: str
    part: str
    rows: int
    tokens: int
    size: int
    sha256: str
    rejected: tuple[Rejected, ...]


def write_receipt(store: Store, receipt: Receipt) -> None:
    """Commits a part, whose file is there already."""
    fields = asdict(receipt) | {"rejected": [rejected_fields(row) for row in receipt.rejected]}
    store.write_json(_name(receipt.part), fields)


def read_receipt(store: Store, part: str) -> Receipt | None:
    """The part's receipt, None where there is none.

    Raises:
      Damaged: it is not as it was written.
    """
    name = _name(part)
    if store.size(name) is None:
        return None
    fields = store.read_json(name)
    rejected = (Rejected(row["input"], row["row"], row["id"], row["reason"]) for row in fields.pop("rejected"))
    return Receipt(**fields, rejected=tuple(rejected))


def has_receipt(store: Store, part: Part) -> bool:
    return store.size(_name(part.name)) is not None


def withdraw_receipt(store: Store, part: str) -> None:
    """Makes a part count as not done."""
    store.remove(_name(part))


def missing(store: Store, parts: Sequence[Part]) -> list[Part]:
    """The parts without a receipt, in order."""
    there = store.sizes(FOLDER)
    return [part for part in parts if f"{part.name}.json" not in there]


def withdraw_unsound(store: Store, job: str, parts: Sequence[Part]) -> None:
    """Withdraws receipts that are damaged, of another job, or whose part's file has not the size that was written."""
    there, files = store.sizes(FOLDER), store.sizes()
    found = [part for part in parts if f"{part.name}.json" in there]
    for part, receipt in zip(found, _read_all(store, found, sound_receipt), strict=True):
        if receipt is None or receipt.job != job or files.get(part.file) != receipt.size:
            withdraw_receipt(store, part.name)


def sound_receipt(store: Store, part: str) -> Receipt | None:
    """The part's receipt, None where there is none or it is damaged."""
    try:
        return read_receipt(store, part)
    except Damaged:
        return None


def other_job(store: Store, job: str, parts: Sequence[Part]) -> str | None:
    """A part's receipt that is of another job, by name."""
    found = (receipt for receipt in _read_all(store, parts, sound_receipt) if receipt and receipt.job != job)
    return next((_name(receipt.part) for receipt in found), None)


def receipts(store: Store, parts: Sequence[Part]) -> Iterator[Receipt]:
    """The receipts of finished parts, in order."""
    for part, receipt in zip(parts, _read_all(store, parts, read_receipt), strict=True):
        if receipt is None:
            raise StellaError(f"{store}/{_name(part.name)} has gone; run the job again.")
        yield receipt


def _read_all(
    store: Store, parts: Sequence[Part], read: Callable[[Store, str], Receipt | None]
) -> Iterator[Receipt | None]:
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(partial(read, store), (part.name for part in parts))


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


def _name(part: str) -> str:
    return f"{FOLDER}/{part}.json"
