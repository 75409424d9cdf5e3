"""Texts of rows of a finished job, read from its inputs."""

from collections.abc import Collection, Mapping
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.location import locate
from stella_jax.job.plan import plan_parts
from stella_jax.job.reader import Reader
from stella_jax.job.records import format_of
from stella_jax.job.rows import Fields, Row
from stella_jax.job.source import Source


def read_texts(manifest: dict[str, Any], wanted: Mapping[int, Collection[str]]) -> dict[str, str]:
    """Texts by id, as far as the job's inputs are still there and unchanged.

    Args:
      wanted: ids by the number of their part; of the inputs, what these parts were made of is read.
    """
    inputs = manifest["inputs"]
    fields = Fields(manifest["text_field"], manifest["id_field"])
    there = {i: source for i, entry in enumerate(inputs) if (source := _source(entry))}
    parts = plan_parts([entry["records"] for entry in inputs], manifest["part_rows"])
    reader = Reader(there, fields)
    found: dict[str, str] = {}
    for number, ids in sorted(wanted.items()):
        for span in parts[number].spans:
            rows = reader.rows(span) if span.input in there else ()
            for _, row in rows:
                if isinstance(row, Row) and row.id in ids:
                    found.setdefault(row.id, row.text)
    return found


def _source(entry: dict[str, Any]) -> Source | None:
    """The input of this entry of the manifest, None where it has gone or changed."""
    location = locate(entry["path"])
    try:
        if location.size() == entry["size"]:
            return Source(entry["name"], location, format_of(location))
    except (OSError, StellaError):
        pass
    return None
