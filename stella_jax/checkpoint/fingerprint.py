"""Fingerprint of a checkpoint: hashes of everything that an embedding depends on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.device_slices import sha256_of_leaf
from stella_jax.checkpoint.hashes import sha256_of_file
from stella_jax.models.heads import Head


def fingerprint(checkpoint: Checkpoint, heads: Sequence[Head | None]) -> dict[str, Any]:
    """sha256 of the encoder's numbers, of each head's by dimension, of tokenizer.json, and of the settings.

    Numbers and settings are hashed by value, not as files: a converted checkpoint has the same fingerprint, and so has
    one with reformatted JSON or an additional head.
    """
    return {
        "encoder": _hash_leaves(checkpoint, "encoder/").hexdigest(),
        "heads": {str(head.dim): _hash_head(checkpoint, head) for head in heads if head is not None},
        "tokenizer": sha256_of_file(checkpoint.directory.path(checkpoint.spec.file("tokenizer.json"))),
        "settings": hashlib.sha256(json.dumps(_settings(checkpoint), sort_keys=True).encode()).hexdigest(),
    }


def _hash_head(checkpoint: Checkpoint, head: Head) -> str:
    total = _hash_leaves(checkpoint, f"heads/{head.folder}/")
    total.update(head.activation.encode())
    return total.hexdigest()


def _hash_leaves(checkpoint: Checkpoint, section: str) -> "hashlib._Hash":
    """One hash of the leaves' paths, dtypes, shapes and hashes; a few layers, or one leaf, are in memory at a time."""
    weights, total = checkpoint.weights, hashlib.sha256()
    for path in sorted(path for path in weights.leaves if path.startswith(section)):
        line = f"{path} {weights.dtypes[path]} {weights.leaves[path].shape} {sha256_of_leaf(weights, path)}\n"
        total.update(line.encode())
    return total


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    spec = checkpoint.spec
    ending = {"end_of_text": spec.end_of_text} if spec.end_of_text else {}
    return ending | {
        "config": asdict(spec.config),
        "pooling": spec.pooling,
        "normalize": spec.normalize,
        "lower": spec.lower,
        "similarity": spec.similarity,
    }
