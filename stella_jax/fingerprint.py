"""What makes two checkpoints give the same vectors: hashes of all that a text's numbers depend on."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from stella_jax.checkpoint import Checkpoint
from stella_jax.heads import Head


def fingerprint(checkpoint: Checkpoint, head: Head | None) -> dict[str, str]:
    """sha256 of the encoder's numbers, of the head's, of tokenizer.json, and of the settings.

    Numbers and settings are hashed as they are understood, not as files: a converted checkpoint is the same model, and
    so is one whose JSON was reformatted or beside which another head has been put.
    """
    hashes = {"encoder": _hash_leaves(checkpoint, "encoder/")}
    if head is not None:
        hashes["head"] = _hash_leaves(checkpoint, f"heads/{head.folder}/")
    with checkpoint.directory.path(checkpoint.layout.file("tokenizer.json")).open("rb") as file:
        hashes["tokenizer"] = hashlib.file_digest(file, "sha256").hexdigest()
    settings = json.dumps(_settings(checkpoint, head), sort_keys=True)
    return hashes | {"settings": hashlib.sha256(settings.encode()).hexdigest()}


def _hash_leaves(checkpoint: Checkpoint, section: str) -> str:
    """One hash over the leaves' paths, dtypes, shapes and bytes; one leaf is in memory at a time."""
    total = hashlib.sha256()
    for path in sorted(path for path in checkpoint.weights.leaves if path.startswith(section)):
        array = checkpoint.weights.read(path)
        total.update(f"{path} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _settings(checkpoint: Checkpoint, head: Head | None) -> dict[str, Any]:
    layout = checkpoint.layout
    return {
        "config": asdict(layout.config),
        "pooling": layout.pooling,
        "activation": head.activation if head else None,
        "normalize": layout.normalize,
        "lower": layout.lower,
        "similarity": layout.similarity,
    }
