"""The check of all rows: invalid rows and repeated ids, with their positions."""

import json
from pathlib import Path

import pytest

from stella_jax.dry_run.row_check import RowCheck, check_rows
from stella_jax.readers.inputs import open_inputs
from stella_jax.readers.rows import RowFields


def test_invalid_rows_and_repeats_are_listed_with_their_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stella_jax.dry_run.row_check.RUN_ROWS", 3)
    rows = [{"id": i % 5, "text": "x"} for i in range(7)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '\n{"id": 9}\n')
    (tmp_path / "b.csv").write_text('id,text\n9,tea\n3,tea\n4,"cut')
    sentences: list[str] = []
    found = check_rows(
        open_inputs([tmp_path / "a.jsonl", tmp_path / "b.csv"], RowFields()), RowFields(), sentences.append
    )
    assert found == RowCheck(rows=10, invalid=1, repeated=3, damaged=1)
    assert sentences[0] == "a.jsonl:9: text is missing" and "never closed" in sentences[1]
    assert sentences[2:] == [
        "a.jsonl:6: duplicate id 0, first seen at a.jsonl:1",
        "a.jsonl:7: duplicate id 1, first seen at a.jsonl:2",
        "b.csv:2: duplicate id 3, first seen at a.jsonl:4",
    ]
