"""JSON files of a checkpoint in the layout of sentence-transformers."""

import json
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_modules(path: Path, *modules: str) -> None:
    """Writes modules.json with entries "CLASS:FOLDER"."""
    pairs = [module.split(":") for module in modules]
    write_json(
        path / "modules.json",
        [{"type": f"sentence_transformers.models.{kind}", "path": folder} for kind, folder in pairs],
    )


def write_layout(path: Path, hidden_size: int, pooling: str, max_length: int) -> None:
    """Writes the files that make an embedding model of an encoder's directory."""
    write_modules(path, "Transformer:", "Pooling:1_Pooling")
    write_json(path / "1_Pooling/config.json", {"embedding_dimension": hidden_size, "pooling_mode": pooling})
    write_json(path / "sentence_bert_config.json", {"max_seq_length": max_length})
