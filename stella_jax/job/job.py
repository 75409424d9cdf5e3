"""A job, as `_job/job.json` describes it: options, inputs, and the splits that follow from them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError, join_words
from stella_jax.job.commits import COMMITS_FOLDER, IDS_FOLDER
from stella_jax.job.damaged import DAMAGED_FOLDER
from stella_jax.job.heartbeat import HEARTBEATS_FOLDER
from stella_jax.job.ranges import ranges_from_json
from stella_jax.quantization import Ranges
from stella_jax.readers.inputs import InputFile, open_inputs
from stella_jax.readers.records import format_of
from stella_jax.readers.rows import RowFields
from stella_jax.readers.splits import ByteRange, FileSize, Split, default_split_bytes, plan_splits
from stella_jax.storage.location import locate
from stella_jax.storage.store import DamagedFileError, Store

JOB = "_job/job.json"
JOB_FOLDERS = ("_job", COMMITS_FOLDER, HEARTBEATS_FOLDER, DAMAGED_FOLDER, IDS_FOLDER)


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
      fields: the content of job.json.
      inputs: in the job's order; inputs that were added later come last.
      row_fields: the fields of the inputs that are read.
    """

    store: Store
    fields: dict[str, Any]
    inputs: tuple[InputFile, ...]
    row_fields: RowFields

    @classmethod
    def of(cls, store: Store, fields: dict[str, Any], files: Sequence[InputFile], rows: RowFields) -> "Job":
        """The job with these fields; `files` are its inputs, in the order of `fields`."""
        is_large = [entry["planned_size"] > fields["split_bytes"] for entry in fields["inputs"]]
        inputs = [replace(file, is_cut=large and file.can_be_cut) for file, large in zip(files, is_large, strict=True)]
        return cls(store, fields, tuple(inputs), rows)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.fields["fingerprint"]

    @cached_property
    def ranges(self) -> dict[int, Ranges]:
        """The ranges of each head, if the precision needs them."""
        return ranges_from_json(self.fields["ranges"])

    @cached_property
    def splits(self) -> list[Split]:
        """The splits as they were planned, except that the end of an input that was repaired may be further on."""
        entries = zip(self.fields["inputs"], self.inputs, strict=True)
        sizes = [FileSize(entry["planned_size"], file.can_be_cut, entry["generation"]) for entry, file in entries]
        planned = plan_splits(sizes, self.fields["split_bytes"])
        return [split._replace(byte_ranges=tuple(map(self._to_the_end, split.byte_ranges))) for split in planned]

    def _to_the_end(self, byte_range: ByteRange) -> ByteRange:
        entry = self.fields["inputs"][byte_range.input]
        is_last = byte_range.stop == entry["planned_size"]
        return byte_range._replace(stop=max(byte_range.stop, entry["size"])) if is_last else byte_range

    def key(self, split: Split) -> str:
        """Identifies this split of this job."""
        ends = [self.fields["inputs"][each.input]["planned_size"] for each in split.byte_ranges]
        ranges = zip(split.byte_ranges, ends, strict=True)
        return self._hash([(self.inputs[each.input].name, each.start, min(each.stop, end)) for each, end in ranges])

    @cached_property
    def whole_key(self) -> str:
        """Identifies this job with these inputs."""
        inputs = [(entry["name"], entry["size"], entry["version"]) for entry in self.fields["inputs"]]
        return self._hash(self.fields["split_bytes"], inputs)

    def _hash(self, *values: Any) -> str:
        """A hash of these JSON values, and of the fields that all keys have in common."""
        hasher = self._common_hasher.copy()
        hasher.update(f", {_json(*values)}]".encode())
        return hasher.hexdigest()[:16]

    @cached_property
    def _common_hasher(self) -> "hashlib._Hash":
        # Kept, as the ranges of a wide head take milliseconds, and each part asks for its key.
        return hashlib.sha256(f"[{_json(self.fingerprint, self.fields['ranges'])}".encode())

    def was_repaired(self, split: Split) -> bool:
        """Whether an input of the split was damaged when some of its rows were committed, and was replaced since."""
        return any(self.fields["inputs"][each.input]["repaired"] for each in split.byte_ranges)

    def position(self, input: int, number: int) -> str:
        return self.inputs[input].position(number)


def splits_of(files: Sequence[InputFile], split_bytes: int | None) -> list[Split]:
    """The splits of a new job with these inputs."""
    sizes = [FileSize(file.size, file.can_be_cut, 0) for file in files]
    return plan_splits(sizes, split_bytes or default_split_bytes(sum(file.size for file in files)))


def load_job(store: Store, paths: Sequence[str | Path] = ()) -> Job:
    """The job in a directory.

    Args:
      paths: of the inputs that have moved.

    Raises:
      StellaError: there is no job, an input is missing, or a path is of another file.
    """
    if store.size(JOB) is None:
        raise StellaError(f"{store}: not the output of embed or score; it has no {JOB}.")
    fields = store.read_json(JOB)
    entries = fields["inputs"]
    rows = _texts_and_ids(fields)
    moved = {file.name: file for file in open_inputs(paths, rows)} if paths else {}
    if unknown := moved.keys() - {entry["name"] for entry in entries}:
        names = join_words([entry["name"] for entry in entries])
        raise StellaError(f"{min(unknown)}: not the name of an input of the job in {store}; its inputs are {names}.")
    unmoved = open_inputs([entry["path"] for entry in entries if entry["name"] not in moved], rows)
    found = iter(unmoved)
    files = [replace(moved.get(entry["name"]) or next(found), name=entry["name"]) for entry in entries]
    return Job.of(store, fields, files, rows)


def recorded_job(store: Store) -> Job:
    """The job as job.json describes it; its inputs may have changed or be missing."""
    fields = store.read_json(JOB)
    locations = [locate(entry["path"]) for entry in fields["inputs"]]
    files = [
        InputFile(entry["name"], location, format_of(location), entry["size"], entry["version"])
        for entry, location in zip(fields["inputs"], locations, strict=True)
    ]
    return Job.of(store, fields, files, _texts_and_ids(fields))


def read_fields(store: Store) -> dict[str, Any] | None:
    """The content of job.json, None if it is missing or damaged."""
    try:
        return None if store.size(JOB) is None else store.read_json(JOB)
    except DamagedFileError:
        return None


def _texts_and_ids(fields: dict[str, Any]) -> RowFields:
    fingerprint = fields["fingerprint"]
    return RowFields(fingerprint["text_field"], fingerprint["id_field"], query=fingerprint.get("query_field"))


def _json(*values: Any) -> str:
    return ", ".join(json.dumps(value, sort_keys=True) for value in values)
