"""A job, as `_job/job.json` describes it: options, inputs, and from these the splits that processes take.

Every process derives the same job from the same command, so whichever is first writes the file.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError, join_words
from stella_jax.job import commits, damaged, heartbeat
from stella_jax.job.commits import Committed, is_part_file
from stella_jax.job.options import JobOptions, check_same
from stella_jax.job.ranges import ranges_from_json, ranges_to_json, read_ranges
from stella_jax.quantization import Ranges
from stella_jax.readers.inputs import InputFile, open_inputs
from stella_jax.readers.records import format_of
from stella_jax.readers.rows import Fields
from stella_jax.readers.splits import FileSize, Split, default_split_bytes, plan_splits
from stella_jax.storage.location import locate
from stella_jax.storage.store import Damaged, Store

JOB = "_job/job.json"
FOLDERS = ("_job", commits.FOLDER, heartbeat.FOLDER, damaged.FOLDER, "_job/ids")


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
      fields: what job.json holds.
      inputs: in the job's order; those added later come last.
      row_fields: what is read of the inputs.
    """

    store: Store
    fields: dict[str, Any]
    inputs: tuple[InputFile, ...]
    row_fields: Fields

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.fields["fingerprint"]

    @cached_property
    def ranges(self) -> dict[int, Ranges]:
        """Of each head, where the precision needs them."""
        return ranges_from_json(self.fields["ranges"])

    @cached_property
    def splits(self) -> list[Split]:
        entries = zip(self.fields["inputs"], self.inputs, strict=True)
        sizes = [FileSize(entry["planned_size"], file.can_be_cut, entry["generation"]) for entry, file in entries]
        return plan_splits(sizes, self.fields["split_bytes"])

    def key(self, split: Split) -> str:
        """Tells this split of this job from every other."""
        pieces = [(self.inputs[piece.input].name, piece.start, piece.stop) for piece in split.pieces]
        return _hash([self.fingerprint, self.fields["ranges"], pieces])

    @cached_property
    def whole_key(self) -> str:
        """Tells this job, with these inputs, from every other."""
        return _hash(_identity(self.fields))

    def was_repaired(self, split: Split) -> bool:
        """Whether an input of the split was damaged when rows of it were committed, and is another file by now."""
        entries = (self.fields["inputs"][piece.input] for piece in split.pieces)
        return any(entry["repaired"] for entry in entries)

    def position(self, input: int, number: int) -> str:
        return self.inputs[input].position(number)


def splits_of(files: Sequence[InputFile], split_bytes: int | None) -> list[Split]:
    """The splits of a job that is started with these inputs."""
    sizes = [FileSize(file.size, file.can_be_cut, 0) for file in files]
    return plan_splits(sizes, split_bytes or default_split_bytes(sum(file.size for file in files)))


# Makes the ranges of a new job from its inputs, as ranges_to_json gives them.
MakeRanges = Callable[[Job], dict[str, Any]]


def open_job(
    store: Store,
    options: JobOptions,
    fingerprint: dict[str, Any],
    files: Sequence[InputFile],
    make_ranges: MakeRanges = lambda _: {},
) -> Job:
    """Starts the job, or finds it in its directory with its inputs as they were, and adds the inputs that are new.

    Nothing is written where it raises.

    Args:
      fingerprint: of model and options.
      files: what `open_inputs` found.
      make_ranges: called for a job that is new.

    Raises:
      StellaError: the directory holds something else or a job of other settings (names every difference), or an input
        of the job has changed or is missing from the command.
    """
    before, rows = read_fields(store), options.fields
    if before and Committed(store).files:
        check_same(store, before["fingerprint"], fingerprint)
        _check_chosen(store, options, before)
        fields, files = _continued(store, before, files)
        job = _job(store, fields, files, rows)
    else:  # no part is there: nothing is lost by starting again
        job = _job(store, _new_fields(files, options, fingerprint), files, rows)
        if before is None:
            _require_own(store, job)
        fields = job.fields | {"ranges": make_ranges(job)}
        if before and before | {"ranges": None} == fields | {"ranges": None}:
            fields = before
        job = replace(job, fields=fields)
        for name in filter(is_part_file, store.sizes() if before and before != fields else ()):
            store.remove(name)
    store.prepare(*FOLDERS)
    if fields != before:
        store.remove("_job/manifest.json")
        store.write_json(JOB, fields)
    return job


def load_job(store: Store, paths: Sequence[str | Path] = (), rows: Fields | None = None) -> Job:
    """The job as it lies in its directory.

    Args:
      paths: where the inputs are now, by their old names; none: where they were.
      rows: what to read of the inputs; None: texts and ids.

    Raises:
      StellaError: there is none, or an input is missing.
    """
    if store.size(JOB) is None:
        raise StellaError(f"{store}: not the output of embed or score; it has no {JOB}.")
    fields = store.read_json(JOB)
    entries = fields["inputs"]
    given = paths or [entry["path"] for entry in entries]
    rows = rows or _texts_and_ids(fields)
    files = open_inputs(given, rows)
    by_name = {file.name: file for file in files}
    if paths and len(by_name) == len(entries) and all(entry["name"] in by_name for entry in entries):
        files = [by_name[entry["name"]] for entry in entries]
    elif paths:
        there, here = join_words([entry["name"] for entry in entries]), join_words(list(by_name))
        raise StellaError(f"{store} was started with different inputs: they were {there} and are now {here}.")
    files = [replace(file, name=entry["name"]) for file, entry in zip(files, entries, strict=True)]
    return _job(store, fields, files, rows)


def read_fields(store: Store) -> dict[str, Any] | None:
    """What job.json holds, None where it is missing or damaged."""
    try:
        return None if store.size(JOB) is None else store.read_json(JOB)
    except Damaged:
        return None


def recorded_job(store: Store) -> Job:
    """The job as job.json describes it; the inputs may be missing by now or have changed."""
    fields = store.read_json(JOB)
    locations = [locate(entry["path"]) for entry in fields["inputs"]]
    files = [
        InputFile(entry["name"], location, format_of(location), entry["size"], entry["version"])
        for entry, location in zip(fields["inputs"], locations, strict=True)
    ]
    return _job(store, fields, files, _texts_and_ids(fields))


def _texts_and_ids(fields: dict[str, Any]) -> Fields:
    fingerprint = fields["fingerprint"]
    return Fields(fingerprint["text_field"], fingerprint["id_field"], query=fingerprint.get("query_field"))


def _new_fields(files: Sequence[InputFile], options: JobOptions, fingerprint: dict[str, Any]) -> dict[str, Any]:
    split_bytes = options.split_bytes or default_split_bytes(sum(file.size for file in files))
    entries = [_entry(file, 0) for file in files]
    return {"fingerprint": fingerprint, "split_bytes": split_bytes, "ranges": {}, "inputs": entries}


def _entry(file: InputFile, generation: int) -> dict[str, Any]:
    return {
        "name": file.name,
        "path": file.location.full,
        "size": file.size,
        "version": file.version,
        "generation": generation,
        "planned_size": file.size,
        "repaired": False,
    }


def _check_chosen(store: Store, options: JobOptions, before: dict[str, Any]) -> None:
    """Refuses ranges or a size of splits that are not those of the job."""
    if options.split_bytes:
        check_same(store, {"split_bytes": before["split_bytes"]}, {"split_bytes": options.split_bytes})
    if options.ranges:
        ranges = ranges_to_json(read_ranges(options.ranges, before["fingerprint"]["dims"]))
        if ranges != before["ranges"]:
            raise StellaError(
                f"{store} was started with different ranges than those of {options.ranges}; use another --out."
            )


def _continued(
    store: Store, before: dict[str, Any], files: Sequence[InputFile]
) -> tuple[dict[str, Any], list[InputFile]]:
    """The fields of a job that goes on with these files, and the files in its order."""
    by_path, by_name = {file.location.full: file for file in files}, {file.name: file for file in files}
    entries, found = [], []
    for i, entry in enumerate(before["inputs"]):
        file = by_path.get(entry["path"]) or by_name.get(entry["name"])
        if file is None:
            raise StellaError(
                f"{entry['name']} is an input of the job in {store} and missing from the command; name all of its "
                "inputs, or use another --out."
            )
        if (file.size, file.version) != (entry["size"], entry["version"]):
            if not damaged.is_marked(store, i):
                raise StellaError(
                    f"{file.location} has changed since the job in {store} was started ({_change(entry, file)}); "
                    "restore it, or use another --out."
                )
            entry = entry | {"size": file.size, "version": file.version, "repaired": True}
        entries.append(entry)
        found.append(replace(file, name=entry["name"]))
    known = {file.location.full for file in found}
    generation = 1 + max(entry["generation"] for entry in entries)
    names = {entry["name"] for entry in entries}
    for file in files:
        if file.location.full not in known:
            found.append(replace(file, name=_unused(file, names)))
            names.add(found[-1].name)
            entries.append(_entry(found[-1], generation))
    return before | {"inputs": entries}, found


def _change(entry: dict[str, Any], file: InputFile) -> str:
    return f"{entry['size']} bytes then, {file.size} now" if file.size != entry["size"] else "it was written to"


def _unused(file: InputFile, names: set[str]) -> str:
    """A name with as many folders before it as it takes to be another than these."""
    parts = file.location.parts
    return next(
        name for n in range(file.name.count("/") + 1, len(parts) + 1) if (name := "/".join(parts[-n:])) not in names
    )


def _job(store: Store, fields: dict[str, Any], files: Sequence[InputFile], rows: Fields) -> Job:
    is_large = [entry["planned_size"] > fields["split_bytes"] for entry in fields["inputs"]]
    inputs = [replace(file, is_cut=large and file.can_be_cut) for file, large in zip(files, is_large, strict=True)]
    return Job(store, fields, tuple(inputs), rows)


def _identity(fields: dict[str, Any]) -> list[Any]:
    inputs = [(entry["name"], entry["size"], entry["version"]) for entry in fields["inputs"]]
    return [fields["fingerprint"], fields["ranges"], fields["split_bytes"], inputs]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _require_own(store: Store, job: Job) -> None:
    """Refuses a directory that is neither empty nor holds parts of this job alone (its job.json may be damaged)."""
    committed = Committed(store)
    for name, commit in zip(committed.names(), committed.read(store, committed.names()), strict=True):
        if commit and (name.split >= len(job.splits) or commit.key != job.key(job.splits[name.split])):
            raise StellaError(
                f"{store}: {JOB} is missing or damaged, and {name} is of a job with other settings or inputs; use "
                "another --out."
            )
    if not committed.files:
        require_own_files(store)


def require_own_files(store: Store) -> None:
    """Raises StellaError where a directory without any commit holds files that no job writes."""
    if strange := next(_strange(store), None):
        raise StellaError(f"{store} is not empty ({strange}) and not the output of embed or score; use another --out.")


def _strange(store: Store) -> Iterator[str]:
    yield from store.sizes()
    yield from (name for name in store.folders() if name != "_job")
    own = ("progress", "job.json")
    yield from (f"_job/{name}" for name in store.sizes("_job") if not name.startswith(own))
