"""A part in memory, until it is written and committed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
import pyarrow as pa

from stella_jax.errors import StellaError
from stella_jax.job.chunks import Chunk, PartEnd
from stella_jax.job.commits import Commit, write_commit
from stella_jax.job.job import Job, read_fields
from stella_jax.job.output_columns import column_names, postprocess
from stella_jax.job.part_file import part_table, write_part
from stella_jax.job.part_ids import write_ids
from stella_jax.quantization import finite_rows, quantize
from stella_jax.readers.kept_columns import kept_columns
from stella_jax.readers.rows import Rejected, Row
from stella_jax.readers.split_reader import PositionedRow
from stella_jax.tokenizer.tokenizer import Tokens

NOT_FINITE = "its embedding or score is not finite"


@dataclass(slots=True)
class PartBuffer:
    """The chunks of a part so far, in order, and the embeddings (or scores) of each chunk by its index, a head each."""

    chunks: list[Chunk] = field(default_factory=list)
    embeddings: dict[int, Sequence[np.ndarray]] = field(default_factory=dict)

    @property
    def is_embedded(self) -> bool:
        return self.chunks[-1].end is not None and len(self.embeddings) == len(self.chunks)


def commit_part(job: Job, part: PartBuffer) -> tuple[PartEnd, Commit]:
    """Writes the files of a part, then its commit.

    Raises:
      StellaError: someone has started another job in the directory.
    """
    store, name, end = job.store, part.chunks[0].name, part.chunks[-1].end
    assert end
    rows = [row for chunk in part.chunks for row in chunk.rows]
    embeddings = _take_embeddings(job, part)
    precision = job.fingerprint["precision"]
    finite = np.logical_and.reduce([finite_rows(vectors, precision) for vectors in embeddings])
    valid = [row for row in rows if isinstance(row.row, Row)]
    embedded = list(compress(valid, finite))
    tokens = list(compress((text for chunk in part.chunks for text in chunk.tokens), finite))
    table = _table(job, embedded, tokens, (vectors[finite] for vectors in embeddings))
    _require_same_job(job)
    size, sha256 = write_part(store, name.file, table) if embedded else (0, "")
    commit = Commit(
        key=job.key(end.split),
        name=name,
        is_last=end.is_last,
        after=end.after,
        rows=len(embedded),
        tokens=sum(table["n_tokens"].to_pylist()),
        size=size,
        sha256=sha256,
        ids_sha256=write_ids(store, name, embedded) if embedded else "",
        digest=end.digest,
        own_ids=any(row.row.id != job.position(row.input, row.row.number) for row in embedded),
        rejected=tuple(_rejected(job, rows, finite)),
    )
    write_commit(store, commit)
    return end, commit


def _take_embeddings(job: Job, part: PartBuffer) -> list[np.ndarray]:
    """The embeddings [rows, dim] of each head, postprocessed; the part no longer holds them."""
    in_order = [part.embeddings[i] for i in range(len(part.chunks))]
    embeddings = [np.concatenate(of_head) for of_head in zip(*in_order, strict=True)]
    part.embeddings.clear()
    return postprocess(job.fingerprint, embeddings)


def _table(
    job: Job, rows: Sequence[PositionedRow], tokens: Sequence[Tokens], embeddings: Iterable[np.ndarray]
) -> pa.Table:
    """The table of embedded rows, quantized, with their kept columns."""
    precision, dims = job.fingerprint["precision"], job.fingerprint["dims"]
    packed = [quantize(vectors, precision, job.ranges.get(dim)) for dim, vectors in zip(dims, embeddings, strict=True)]
    outputs = dict(zip(column_names(job.fingerprint), packed, strict=True))
    kept = kept_columns([row.row for row in rows if isinstance(row.row, Row)], job.row_fields)
    return part_table([row.row.id or "" for row in rows], outputs, tokens, kept)


def _require_same_job(job: Job) -> None:
    """Raises StellaError if someone has started another job in the directory."""
    fields = read_fields(job.store)
    if fields is None or fields["fingerprint"] != job.fingerprint:
        raise StellaError(f"{job.store}: another job was started here, so nothing was written; use another --out.")


def _rejected(job: Job, rows: Sequence[PositionedRow], finite: np.ndarray) -> Iterator[dict[str, object]]:
    """The lines of rejected.jsonl for rows that are invalid, or whose results are NaN or infinite."""
    is_finite = iter(finite.tolist())
    for item, number, _ in rows:
        if isinstance(item, Rejected):
            yield job.inputs[number].rejected_fields(item)
        elif not next(is_finite):
            yield job.inputs[number].rejected_fields(Rejected(item.input, item.number, item.id, NOT_FINITE))
