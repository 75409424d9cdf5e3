"""The job, run by this process: scan, plan, embed the missing parts one after the other, close."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stella_jax import similarity
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.job.atomic import FULL
from stella_jax.job.manifest import close_job, open_job
from stella_jax.job.plan import Part, plan_parts
from stella_jax.job.progress import Progress, Summary
from stella_jax.job.reader import Reader, read_part
from stella_jax.job.receipts import FOLDER, Receipt, survey, write_receipt
from stella_jax.job.rows import Rejected, Row
from stella_jax.job.scan import Scan, scan_sources
from stella_jax.job.settings import Settings, job_fingerprint
from stella_jax.job.source import open_sources
from stella_jax.job.write import part_table, write_part
from stella_jax.tokenizer import Tokens

# Texts given to the tokenizer at once: what it builds around the ids of a text is many times their size.
TOKENIZED_ROWS = 1024


def run_job(
    model: Stella,
    origin: dict[str, Any],
    inputs: Sequence[str | Path],
    out: Path,
    settings: Settings,
    progress: bool = False,
) -> Summary:
    """Embeds the inputs into `out`, or finishes what an earlier run of the same job left there.

    Nothing is written before every input has been read to its end.

    Args:
      origin: where the model came from ("model", "revision"), for the manifest.
      progress: bars on stderr.

    Raises:
      StellaError: an input or `out` cannot be used, or the disk is full; finished parts are kept.
    """
    sources = open_sources(inputs, settings.fields)
    with _full_disk(out), scan_sources(sources, settings.fields, _nearest_folder(out), progress) as scan:
        parts = plan_parts([scanned.records for scanned in scan.inputs], settings.part_rows)
        fingerprint = job_fingerprint(model, scan, settings)
        open_job(out, fingerprint, len(parts))
        missing, done = survey(out, parts)
        with Progress(scan.rows, done, progress and bool(missing)) as counts:
            reader = Reader(dict(enumerate(sources)), settings.fields)
            for part in missing:
                _finish_part(model, settings, out, part, read_part(reader, scan, part), counts)
            totals = close_job(out, _manifest_fields(origin, scan, fingerprint), parts)
            return counts.summary(totals)


def _finish_part(
    model: Stella, settings: Settings, out: Path, part: Part, items: list[Row | Rejected], counts: Progress
) -> None:
    """Embeds a part's rows, writes its file, and commits it with its receipt."""
    rows = [item for item in items if isinstance(item, Row)]
    counts.rejected(len(items) - len(rows))
    tokens = _tokenize(model, [row.text for row in rows], settings.prompt)
    embeddings = model.embed_tokens(tokens, report=counts.embedded)
    if settings.normalize:
        embeddings = similarity.unit(embeddings)
    finite = np.isfinite(embeddings).all(axis=1)
    lost = {rows[i].id for i in np.flatnonzero(~finite)}
    table = part_table([row.id for row in rows], embeddings, tokens)
    table = table.filter(pa.array(finite)) if lost else table
    size, sha256 = write_part(out / part.file, table)
    rejected = tuple(_reject(item) for item in items if isinstance(item, Rejected) or item.id in lost)
    n_tokens = sum(table["n_tokens"].to_pylist())
    write_receipt(out, Receipt(part.name, table.num_rows, n_tokens, size, sha256, rejected))


def _tokenize(model: Stella, texts: Sequence[str], prompt: str) -> list[Tokens]:
    starts = range(0, len(texts), TOKENIZED_ROWS)
    return [tokens for i in starts for tokens in model.tokenize(texts[i : i + TOKENIZED_ROWS], prompt)]


def _reject(item: Row | Rejected) -> Rejected:
    if isinstance(item, Rejected):
        return item
    return Rejected(item.input, item.number, item.id, "its embedding is not finite")


def _manifest_fields(origin: dict[str, Any], scan: Scan, fingerprint: dict[str, Any]) -> dict[str, Any]:
    settings = ("dim", "dtype", "max_seq_length", "prompt", "normalize", "text_field", "id_field", "part_rows")
    inputs = [
        {
            "name": scanned.source.name,
            "path": scanned.source.location.full,
            "size": scanned.size,
            "sha256": scanned.sha256,
            "records": scanned.records,
            "rows": scanned.rows,
        }
        for scanned in scan.inputs
    ]
    return origin | {name: fingerprint[name] for name in settings} | {"inputs": inputs, "fingerprint": fingerprint}


def _nearest_folder(out: Path) -> Path:
    """The folder nearest to `out` that exists: of the same disk, and known to be writable before the work begins."""
    return next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())


@contextmanager
def _full_disk(out: Path) -> Iterator[None]:
    """Turns a full disk into a sentence; whatever was being written is gone already."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        done = len(list((out / FOLDER).glob("part-*.json")))
        kept = f"parts finished and kept: {done}"
        raise StellaError(f"the disk of {out} is full; {kept}. Make room and run the same command again.") from error
