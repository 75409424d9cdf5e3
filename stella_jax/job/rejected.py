"""Rejected rows: `_job/rejected.jsonl`, and how many a job may have."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from stella_jax.errors import StellaError
from stella_jax.job.commits import Commit

REJECTED = "_job/rejected.jsonl"


def rejected_lines(commits: Sequence[Commit]) -> Iterator[bytes]:
    """The lines of rejected.jsonl."""
    for commit in commits:
        for fields in commit.rejected:
            yield json.dumps(fields).encode() + b"\n"


def check_totals(totals: dict[str, int], commits: Sequence[Commit], max_rejected: float) -> None:
    """Raises StellaError if a finished job has no rows, or more rejected rows than allowed."""
    rows = totals["rows"] + totals["rejected"]
    examples = next((commit.rejected for commit in commits if commit.rejected), tuple[dict[str, Any], ...]())
    if not rows:
        raise StellaError("inputs: no rows found; check the paths.")
    if totals["rejected"] > max_rejected * rows:
        raise too_many_rejected(totals["rejected"], rows, max_rejected, examples)
    if not totals["rows"]:
        example = _example(examples[0])
        raise StellaError(f"inputs: all rows are rejected, {example}; fix the inputs and run the command again.")


def too_many_rejected(rejected: int, rows: int, max_rejected: float, examples: Sequence[dict[str, Any]]) -> StellaError:
    """The error of a job in which more rows are rejected than allowed, with the first of `examples`."""
    example = f", {_example(examples[0])}" if examples else ""
    return StellaError(
        f"inputs: {rejected} of {rows} rows are rejected ({rejected / max(1, rows):.2%}) where --max-rejected "
        f"allows {max_rejected:.2%}{example}; fix the inputs and use another --out, or raise --max-rejected."
    )


def _example(fields: dict[str, Any]) -> str:
    where = f"@{fields['byte']}" if "byte" in fields else f":{fields['row']}"
    return f"for example {fields['input']}{where} ({fields['reason']})"
