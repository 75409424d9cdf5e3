"""Starts a job, or resumes it with the inputs that it had and new ones.

Every process derives the same job.json from the same command, so it does not matter which one writes it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from stella_jax.checkpoint.differences import differences
from stella_jax.errors import StellaError
from stella_jax.job import damaged
from stella_jax.job.commits import COMMITS_FOLDER, IDS_FOLDER, Committed, PartName, is_part_file
from stella_jax.job.job import JOB, JOB_FOLDERS, Job, read_fields
from stella_jax.job.manifest import MANIFEST
from stella_jax.job.options import JobOptions
from stella_jax.job.ranges import ranges_to_json, read_ranges
from stella_jax.job.source_rows import read_source_rows
from stella_jax.readers.first_rows import check_first_rows
from stella_jax.readers.inputs import InputFile
from stella_jax.readers.splits import default_split_bytes
from stella_jax.storage.store import Store

# Makes the ranges of a new job from its inputs, in the form of `ranges_to_json`.
MakeRanges = Callable[[Job], dict[str, Any]]


def open_job(
    store: Store,
    options: JobOptions,
    fingerprint: dict[str, Any],
    files: Sequence[InputFile],
    make_ranges: MakeRanges = lambda _: {},
) -> Job:
    """Starts a job, or resumes the one in the directory, with any new inputs added.

    If it raises, nothing was written.

    Args:
      fingerprint: of model and options.
      files: as `open_inputs` returns them.
      make_ranges: called for a new job.

    Raises:
      StellaError: a field is in no row (see `check_first_rows`), the directory holds something else or a job with
        different settings (names every difference), or an input of the job has changed or is missing from the command.
    """
    before, rows = read_fields(store), options.fields
    if before and _has_rows(store):
        _check_same(store, before["fingerprint"], fingerprint)
        _check_options(store, options, before)
        fields, files = _resumed(store, before, files)
        job = Job.of(store, fields, files, rows)
        _check_repaired(job, before)
    else:  # without any row, nothing is lost by starting again
        check_first_rows(files, rows)
        job = Job.of(store, _new_fields(files, options, fingerprint), files, rows)
        if before is None:
            _require_own(store, job)
        fields = job.fields | {"ranges": make_ranges(job)}
        if before and before | {"ranges": None} == fields | {"ranges": None}:
            fields = before
        job = replace(job, fields=fields)
        if before and before != fields:
            _remove_parts(store)
    store.prepare(*JOB_FOLDERS)
    if fields != before:
        store.remove(MANIFEST)
        store.write_json(JOB, fields)
    return job


def _has_rows(store: Store) -> bool:
    """Whether any committed part has a file, thus rows."""
    files = store.sizes()
    return any(name.file in files for name in Committed(store).files)


def _remove_parts(store: Store) -> None:
    """Removes all that was written of another job, whose parts have no rows or were never committed."""
    for folder in (COMMITS_FOLDER, IDS_FOLDER, damaged.DAMAGED_FOLDER):
        for name in store.sizes(folder):
            store.remove(f"{folder}/{name}")
    for name in filter(is_part_file, store.sizes()):
        store.remove(name)


def require_own_files(store: Store) -> None:
    """Raises StellaError if a directory without commits holds files that a job does not write."""
    if foreign := next(_foreign_files(store), None):
        raise StellaError(f"{store}: not empty ({foreign}) and not the output of embed or score; use another --out.")


def _foreign_files(store: Store) -> Iterator[str]:
    yield from store.sizes()
    yield from (name for name in store.folders() if name != "_job")
    own = ("progress", "job.json")
    yield from (f"_job/{name}" for name in store.sizes("_job") if not name.startswith(own))


def _require_own(store: Store, job: Job) -> None:
    """Refuses a directory that is neither empty nor holds only parts of this job, whose job.json may be damaged."""
    committed = Committed(store)
    for name, commit in zip(committed.names(), committed.read(store, committed.names()), strict=True):
        if commit and (name.split >= len(job.splits) or commit.key != job.key(job.splits[name.split])):
            raise StellaError(
                f"{store}: {JOB} is missing or damaged, and {name} belongs to a job with different settings or inputs; "
                "use another --out."
            )
    if not committed.files:
        require_own_files(store)


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


def _check_same(store: Store, before: Any, now: dict[str, Any]) -> None:
    """Raises StellaError if two fingerprints differ; names every difference."""
    found = list(differences(before, now))
    if found:
        raise StellaError(f"{store}: started with different settings ({'; '.join(found)}); use another --out.")


def _check_options(store: Store, options: JobOptions, before: dict[str, Any]) -> None:
    """Refuses ranges or a split size other than the job's."""
    if options.split_bytes:
        _check_same(store, {"split_bytes": before["split_bytes"]}, {"split_bytes": options.split_bytes})
    if options.ranges:
        ranges = ranges_to_json(read_ranges(options.ranges, before["fingerprint"]["dims"]))
        if ranges != before["ranges"]:
            raise StellaError(
                f"{store}: started with ranges different from those in {options.ranges}; use another --out."
            )


def _resumed(
    store: Store, before: dict[str, Any], files: Sequence[InputFile]
) -> tuple[dict[str, Any], list[InputFile]]:
    """The fields of the job with these files, and the files in its order, new ones last."""
    by_path, by_name = {file.location.full: file for file in files}, {file.name: file for file in files}
    entries, found = [], []
    for i, entry in enumerate(before["inputs"]):
        file = by_path.get(entry["path"]) or by_name.get(entry["name"])
        if file is None:
            raise StellaError(
                f"{entry['name']}: an input of the job in {store}, but missing from the command; name all of its "
                "inputs, or use another --out."
            )
        if (file.size, file.version) != (entry["size"], entry["version"]):
            if not damaged.is_marked(store, i):
                raise StellaError(
                    f"{file.location}: changed since the job in {store} was started ({_change(entry, file)}); restore "
                    "it with its modification time (as cp -p does), or use another --out."
                )
            entry = entry | {"size": file.size, "version": file.version, "repaired": True}
        entries.append(entry)
        found.append(replace(file, name=entry["name"]))
    known = {file.location.full for file in found}
    generation = 1 + max(entry["generation"] for entry in entries)
    names = {entry["name"] for entry in entries}
    for file in files:
        if file.location.full not in known:
            found.append(replace(file, name=_unused_name(file, names)))
            names.add(found[-1].name)
            entries.append(_entry(found[-1], generation))
    return before | {"inputs": entries}, found


def _check_repaired(job: Job, before: dict[str, Any]) -> None:
    """Compares newly repaired inputs with what finished splits have of them; open splits are compared when read."""
    entries = zip(before["inputs"], job.fields["inputs"], strict=False)
    repaired = {i for i, (then, now) in enumerate(entries) if now["repaired"] and now != then}
    committed = Committed(job.store)
    for split in job.splits if repaired else ():
        if committed.is_finished(split.number) and any(each.input in repaired for each in split.byte_ranges):
            names = [PartName(split.number, number) for number in committed.of(split.number).numbers]
            for name in names if all(committed.read(job.store, names)) else ():  # a damaged commit is redone
                deque(read_source_rows(job, committed, name), maxlen=0)


def _change(entry: dict[str, Any], file: InputFile) -> str:
    return f"{entry['size']} bytes then, {file.size} now" if file.size != entry["size"] else "it was written to"


def _unused_name(file: InputFile, names: set[str]) -> str:
    """A name that is not among these, with as many folders as needed."""
    parts = file.location.parts
    return next(
        name for n in range(file.name.count("/") + 1, len(parts) + 1) if (name := "/".join(parts[-n:])) not in names
    )
