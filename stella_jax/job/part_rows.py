"""The rows of inputs that a finished part was made of, read again."""

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from stella_jax.errors import StellaError
from stella_jax.job.commits import Commit, Committed, PartName
from stella_jax.job.job import Job, recorded_job
from stella_jax.readers.rows import Row
from stella_jax.readers.split_reader import Position, RowsDigest, read_split
from stella_jax.readers.splits import Split
from stella_jax.storage.store import Store


def read_part(job: Job, committed: Committed, name: PartName, check: bool = True) -> Iterator[tuple[Row, bool]]:
    """The rows that could be embedded, in order, and whether each is in the part: repeats and others were rejected.

    Args:
      check: whether to compare all rows, at the end, with the digest of those that were embedded.

    Raises:
      StellaError: an input is not what it was, or the part has no sound commit.
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
        names = ", ".join(str(job.inputs[piece.input].location) for piece in job.splits[name.split].pieces)
        raise StellaError(f"the rows of {name} in {names} are not those that were embedded; restore the input.")


def texts_of(store: Store, names: Iterable[PartName], ids: Collection[str]) -> dict[str, str]:
    """Texts by id of rows of these parts, as far as the inputs are there and unchanged."""
    job, committed = recorded_job(store), Committed(store)
    found: dict[str, str] = {}
    for name in names:
        pieces = job.splits[name.split].pieces
        there = [piece for piece in pieces if job.inputs[piece.input].is_unchanged()]
        if len(pieces) == 1 and there:
            rows = (row for row, is_in_part in read_part(job, committed, name, check=False) if is_in_part)
        else:
            read = read_split(job.inputs, Split(name.split, tuple(there)), job.row_fields)
            rows = (row.row for row in read if isinstance(row.row, Row))
        for row in rows:
            if row.id in ids and isinstance(row.text, str):
                found.setdefault(row.id, row.text)
    return found


def _commit(job: Job, committed: Committed, name: PartName) -> Commit:
    [commit] = committed.read(job.store, [name]) if name in committed.files else [None]
    if commit is None:
        raise StellaError(f"{job.store}: the commit of {name} is missing or damaged; run its command again.")
    return commit
