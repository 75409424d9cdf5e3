"""Comparing a saved checkpoint with its source."""

import json
from pathlib import Path
from typing import Any

from stella_jax import EmbeddingModel

SETTINGS = "config_sentence_transformers.json"


def files(directory: Path) -> dict[str, bytes]:
    names = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("expected")}


def fields(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())


def assert_unchanged(saved: Path, source: Path) -> None:
    """All files have the same bytes, except for the added prompt `query`."""
    before, after = files(source), files(saved)
    if "query" not in fields(source / SETTINGS)["prompts"] and fields(source / SETTINGS)["prompts"]:
        old, new = json.loads(before.pop(SETTINGS)), json.loads(after.pop(SETTINGS))
        assert new.pop("prompts") == old["prompts"] | {"query": old.pop("prompts")["s2p_query"]}
        assert new == old
    after.pop("expected_texts.json", None)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == []


def changed(model: EmbeddingModel, *names: str) -> EmbeddingModel:
    params = model.params()
    return model.with_params({name: params[name] + 0.5 for name in names})
