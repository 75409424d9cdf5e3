"""A job: what it is (`job.json`), which parts it is cut into (`plan/`), and which of them are done (`receipts/`)."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError, join_words
from stella_jax.job import plan_files, receipts
from stella_jax.job.hashing import identify_all
from stella_jax.job.lookout import PATIENCE, Lookout
from stella_jax.job.plan import Part, plan_parts
from stella_jax.job.plan_files import PlanFiles, write_plan
from stella_jax.job.progress import Progress, journal_name
from stella_jax.job.reader import Reader
from stella_jax.job.rows import Rejected, Row
from stella_jax.job.scan import Scan, scan_sources
from stella_jax.job.scanner import RowsDigest
from stella_jax.job.settings import Settings, check_same, settings_of
from stella_jax.job.source import Source, open_sources
from stella_jax.job.store import Damaged, Store

JOB = "job.json"
FOLDERS = (receipts.FOLDER, plan_files.FOLDER)
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """A planned job.

    Attributes:
      fields: what job.json holds.
      plan: what is known of each part.
    """

    store: Store
    sources: tuple[Source, ...]
    settings: Settings
    fields: dict[str, Any]
    parts: tuple[Part, ...]
    plan: PlanFiles

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.fields["fingerprint"]

    @property
    def key(self) -> str:
        """Tells this job from every other."""
        return _key(self.fingerprint)

    def missing(self) -> list[Part]:
        """The parts that are not done, in order."""
        return receipts.missing(self.store, self.parts)

    def read(self, reader: Reader, part: Part) -> list[Row | Rejected]:
        """A part's rows in order, those among them rejected whose id came before.

        Raises:
          StellaError: they are not the rows that the job was planned with.
        """
        entry, repeats = self.plan.entry(part.number), self.plan.repeats(part.number)
        items: list[Row | Rejected] = []
        digest = RowsDigest()
        for position, row in self.rows(reader, part):
            digest.add(row)
            if position in repeats:
                first = self._where(repeats[position])
                row = Rejected(row.input, row.number, row.id, f"duplicate id, first seen at {first}")
            items.append(row)
        if digest.digest() != entry["digest"].tobytes():
            names = ", ".join(str(self.sources[span.input].location) for span in part.spans)
            raise StellaError(
                f"the rows of {part.name} in {names} are not those that the job was planned with; put the input back "
                "as it was, or choose another directory."
            )
        return items

    def rows(self, reader: Reader, part: Part) -> Iterator[tuple[int, Row | Rejected]]:
        """A part's rows with their positions, unchecked."""
        position, offset = part.start, int(self.plan.entry(part.number)["offset"])
        for i, span in enumerate(part.spans):
            begins = 0 if i else (offset if offset >= 0 else None)
            for number, row in reader.rows(span, begins):
                yield position + number - span.start, row
            position += span.stop - span.start

    def _where(self, position: int) -> str:
        """Input and row number of a position, in words."""
        for entry in self.fields["inputs"]:
            if position < entry["records"]:
                return f"{entry['name']}:{position + 1}"
            position -= entry["records"]
        raise AssertionError("no such position")


def open_job(
    store: Store,
    inputs: Sequence[str | Path],
    settings: Settings,
    fingerprint: dict[str, Any],
    max_rejected: float,
    progress: Progress,
) -> Job:
    """Plans the job, or finds it in its folder and its inputs as they were; mends what says what the job is.

    Nothing is written before every input has been read to its end.

    Args:
      fingerprint: all but the inputs.
      max_rejected: share of rows that may be rejected.

    Raises:
      StellaError: an input or the folder cannot be used, the folder holds something else or a job of other settings or
        inputs (names every difference), or too many rows cannot be embedded.
    """
    sources = tuple(open_sources(inputs, settings.fields))
    fields = _fields(store)
    if fields is not None:
        check_same(store, fields.get("fingerprint"), fingerprint | {"inputs": _identities(sources, progress)})
        check_rejected(fields["rejected"], sum(entry["rows"] for entry in fields["inputs"]), max_rejected)
        store.prepare(*FOLDERS)
    elif store.size(JOB) is None and not store.sizes(receipts.FOLDER):
        _require_empty(store)
    if fields is None or not _is_planned(store):
        fields = _plan(store, sources, settings, fingerprint, max_rejected, progress)
    job = _job(store, sources, settings, fields)
    receipts.withdraw_unsound(store, job.key, job.parts)
    return job


def join_job(
    store: Store,
    inputs: Sequence[str | Path],
    settings: Settings,
    fingerprint: dict[str, Any],
    progress: Progress,
) -> Job:
    """The job that another process plans, as soon as it has.

    Raises:
      StellaError: it is of other settings, or that process gives no sign of life.
    """
    lookout = Lookout(store)
    while not _is_planned(store):
        if not lookout.alive(journal_name(0)):
            raise StellaError(f"process 0 has not planned {store}, and was silent for {PATIENCE} s; start it again.")
        if lookout.stopped(journal_name(0)):
            raise StellaError(f"process 0 stopped before it had planned {store}; what it said tells why.")
        progress.waiting()
        time.sleep(POLL_SECONDS)
    fields = store.read_json(JOB)
    check_same(store, fields.get("fingerprint"), fingerprint | {"inputs": fields["fingerprint"]["inputs"]})
    return _job(store, _same_sources(store, inputs, settings, fields), settings, fields)


def load_job(store: Store, inputs: Sequence[str | Path] = ()) -> Job:
    """The job as it lies in its folder.

    Args:
      inputs: where the inputs are now, by their old names; none: where they were when it was planned.

    Raises:
      StellaError: there is none, or an input has gone.
    """
    if store.size(JOB) is None:
        raise StellaError(f"{store} holds no embedding job; it has no {JOB}.")
    fields = store.read_json(JOB)
    settings = settings_of(fields["fingerprint"])
    inputs = inputs or [entry["path"] for entry in fields["inputs"]]
    return _job(store, _same_sources(store, inputs, settings, fields), settings, fields)


def check_rejected(rejected: int, rows: int, max_rejected: float, first: Rejected | None = None) -> None:
    """Raises StellaError where more rows are rejected than may be."""
    if rejected <= max_rejected * rows:
        return
    example = f"; the first is {first.input}:{first.number}: {first.reason}" if first else ""
    raise StellaError(
        f"{rejected} of {rows} rows cannot be embedded ({rejected / rows:.2%}), and --max-rejected allows "
        f"{max_rejected:.2%}{example}. Mend the inputs, or allow more."
    )


def _plan(
    store: Store,
    sources: Sequence[Source],
    settings: Settings,
    fingerprint: dict[str, Any],
    max_rejected: float,
    progress: Progress,
) -> dict[str, Any]:
    """Scans the inputs, writes the plan and then job.json, whose fields it returns."""
    with scan_sources(sources, settings.fields, settings.part_rows, store.scratch, progress.tick) as scan:
        rejected = sum(scanned.faulty for scanned in scan.inputs) + scan.repeated
        check_rejected(rejected, sum(scanned.rows for scanned in scan.inputs), max_rejected, scan.first_fault)
        store.prepare(*FOLDERS)
        parts = plan_parts([scanned.records for scanned in scan.inputs], settings.part_rows)
        inputs = list(_inputs(sources, scan))
        identities = [{name: entry[name] for name in ("name", "size", "sha256")} for entry in inputs]
        fields = {
            "parts": len(parts),
            "rejected": rejected,
            "plan": write_plan(store, parts, scan.parts, scan.duplicates),
            "inputs": inputs,
            "fingerprint": fingerprint | {"inputs": identities},
        }
    other = receipts.other_job(store, _key(fields["fingerprint"]), parts)
    if other is not None:
        raise StellaError(
            f"{store}/{JOB} is missing or damaged, and {other} is of a job of other settings or inputs; choose another "
            "directory."
        )
    store.write_json(JOB, fields)
    return fields


def _key(fingerprint: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def _fields(store: Store) -> dict[str, Any] | None:
    """What job.json holds, None where it is not there or damaged."""
    try:
        return None if store.size(JOB) is None else store.read_json(JOB)
    except Damaged:
        return None


def _is_planned(store: Store) -> bool:
    """Whether the job and its plan can be read; process 0 makes them again where they are damaged."""
    fields = _fields(store)
    try:
        return fields is not None and bool(PlanFiles(store, fields["plan"]))
    except Damaged:
        return False


def _job(store: Store, sources: tuple[Source, ...], settings: Settings, fields: dict[str, Any]) -> Job:
    parts = plan_parts([entry["records"] for entry in fields["inputs"]], settings.part_rows)
    return Job(store, sources, settings, fields, tuple(parts), PlanFiles(store, fields["plan"]))


def _same_sources(
    store: Store, inputs: Sequence[str | Path], settings: Settings, fields: dict[str, Any]
) -> tuple[Source, ...]:
    """The inputs, which must have the names of those that the job was planned with."""
    sources = tuple(open_sources(inputs, settings.fields))
    here, there = [source.name for source in sources], [entry["name"] for entry in fields["inputs"]]
    if here != there:
        raise StellaError(
            f"{store} was started with different inputs: {join_words(there)}; now they are {join_words(here)}."
        )
    return sources


def _inputs(sources: Sequence[Source], scan: Scan) -> Iterator[dict[str, Any]]:
    for source, scanned in zip(sources, scan.inputs, strict=True):
        yield {
            "name": source.name,
            "path": source.location.full,
            "size": scanned.size,
            "sha256": scanned.sha256,
            "records": scanned.records,
            "rows": scanned.rows,
        }


def _identities(sources: Sequence[Source], progress: Progress) -> list[dict[str, Any]]:
    found = identify_all([source.location for source in sources], progress.tick)
    return [{"name": source.name, **each._asdict()} for source, each in zip(sources, found, strict=True)]


def _require_empty(store: Store) -> None:
    """Nothing but what a process leaves that was killed while it planned."""
    known = {JOB, *FOLDERS, *(name.rsplit("/", 1)[-1] for name in plan_files.NAMES)}
    files = [name for folder in ("", *FOLDERS) for name in store.sizes(folder)]
    strange = [name for name in files if name not in known and not name.startswith("progress")]
    if strange:
        raise StellaError(
            f"{store} exists and is not empty ({strange[0]}), and no embedding job began it; choose another directory."
        )
