"""Reads the input rows of a finished part again."""

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from stella_jax.errors import StellaError
from stella_jax.job.commits import Commit, Committed, PartName
from stella_jax.job.job import Job, recorded_job
from stella_jax.readers.rows import Row
from stella_jax.readers.split_reader import Position, RowsDigest, read_split
from stella_jax.readers.splits import Split
from stella_jax.storage.store import Store


def read_source_rows(job: Job, committed: Committed, name: PartName, check: bool = True) -> Iterator[tuple[Row, bool]]:
    """The valid input rows of a part, in order, and whether each is in the part: some were rejected later.

    Args:
      check: whether to compare, at the end, the digest of all rows with the digest in the commit.

    Raises:
      StellaError: an input has changed, or the part has no valid commit.
    """
    commit, start = _commit(job, committed, name), Position()
    if name.number:
        start = _commit(job, committed, PartName(name.split, name.number - 1)).after
    rejected = {(fields["input"], fields.get("row", fields.get("byte"))) for fields in commit.rejected}
    digest = RowsDigest()
    rows = read_split(job.inputs, job.splits[name.split], job.row_fields, start)
    for item, number, _ in islice(rows, commit.rows + len(commit.rejected)):
        digest.add(item)
        if isinstance(item, Row):
            yield item, (job.inputs[number].name, item.number) not in rejected
    if check and digest.hexdigest() != commit.digest:
        names = ", ".join(str(job.inputs[each.input].location) for each in job.splits[name.split].byte_ranges)
        raise StellaError(f"{names}: the rows of {name} have changed since they were embedded; restore the input.")


def texts_by_id(store: Store, names: Iterable[PartName], ids: Collection[str]) -> dict[str, str]:
    """The texts of rows of these parts by id, without those whose inputs are missing or have changed."""
    job, committed = recorded_job(store), Committed(store)
    found: dict[str, str] = {}
    for name in names:
        byte_ranges = job.splits[name.split].byte_ranges
        unchanged = [each for each in byte_ranges if job.inputs[each.input].is_unchanged()]
        if len(byte_ranges) == 1 and unchanged:
            rows = (row for row, is_in_part in read_source_rows(job, committed, name, check=False) if is_in_part)
        else:
            read = read_split(job.inputs, Split(name.split, tuple(unchanged)), job.row_fields)
            rows = (row.row for row in read if isinstance(row.row, Row))
        for row in rows:
            if row.id in ids and isinstance(row.text, str):
                found.setdefault(row.id, row.text)
    return found


def _commit(job: Job, committed: Committed, name: PartName) -> Commit:
    commit = committed.read_one(job.store, name)
    if commit is None:
        raise StellaError(f"{job.store}: the commit of {name} is missing or damaged; run the job again.")
    return commit
