"""Verifies a conversion: hashes of all tensors and files, and embeddings of a few texts."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.directory import SETTINGS
from stella_jax.checkpoint.flax_weights import FlaxWeights
from stella_jax.checkpoint.hashes import hashed, sha256_of_array
from stella_jax.checkpoint.prompts import with_query_prompt
from stella_jax.checkpoint.side_files import side_files
from stella_jax.checkpoint.torch_layout import native_tokenizer
from stella_jax.checkpoint.weights import raise_faults
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError
from stella_jax.reranker import Reranker

TEXTS = (
    "a",
    "What are some ways to reduce stress?",
    "Green tea has been consumed for centuries and is known for its potential health benefits. " * 8,
    "Café naïve ÜBER straße — 北京 快排算法介绍",
)


def verify(
    source: Checkpoint, converted: Checkpoint, native: bool = False, accept_changes: bool = False
) -> Iterator[str]:
    """Compares two checkpoints that should be equal; yields one sentence per passed check.

    Args:
      source: the original checkpoint.
      converted: the result.
      native: whether `converted` has transformers' names, config.json and shards; its settings may then add the prompt
        `query`, and its tokenizer.json an end-of-text token.
      accept_changes: whether to ignore the hashes in provenance.json.

    Raises:
      StellaError: lists the differences.
    """
    yield _compare_leaves(source, converted, accept_changes)
    yield _compare_files(source, converted, native)
    if not native and not accept_changes:
        yield _compare_weight_files(source, converted)
    yield _compare_results(source, converted)


def _compare_leaves(source: Checkpoint, converted: Checkpoint, accept_changes: bool) -> str:
    compared = (converted,) if accept_changes else (source, converted)
    recorded = [c.weights.provenance.get("leaves", {}) for c in compared if isinstance(c.weights, FlaxWeights)]
    faults = [
        f"only in one checkpoint: {path}" for path in source.weights.leaves.keys() ^ converted.weights.leaves.keys()
    ]
    for path in source.weights.leaves.keys() & converted.weights.leaves.keys():
        hashes = {sha256_of_array(checkpoint.weights.read(path)) for checkpoint in (source, converted)}
        hashes |= {leaves.get(path, {}).get("sha256") for leaves in recorded}
        faults += [f"differs: {path}"] if len(hashes) > 1 else []
    raise_faults(f"{converted.directory.root}: weights differ from the source:", faults)
    places = f"both checkpoints and in {len(recorded)} provenance.json"
    return f"{len(source.weights.leaves)} leaves have the same sha256 in {places}"


def _compare_files(source: Checkpoint, converted: Checkpoint, native: bool) -> str:
    spec = source.spec
    rewritten = {spec.file("config.json"), spec.file("model.safetensors.index.json"), SETTINGS} if native else set()
    tokenizer = native_tokenizer(source) if native else None
    rewritten |= {spec.file("tokenizer.json")} if tokenizer else set()
    ours, theirs = (
        hashed(c.directory, [name for name in side_files(c.directory) if name not in rewritten])
        for c in (source, converted)
    )
    faults = [f"differs: {name}" for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    if native and _settings(converted) != with_query_prompt(_settings(source)):
        faults.append(f"differs, by more than the prompt `query`: {SETTINGS}")
    if tokenizer and converted.directory.path(spec.file("tokenizer.json")).read_text(encoding="utf-8") != tokenizer:
        faults.append(f"differs, by more than the end-of-text token: {spec.file('tokenizer.json')}")
    raise_faults(f"{converted.directory.root}: files other than the weights differ from the source:", faults)
    return f"{len(ours)} files other than the weights have the same sha256"


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    return checkpoint.directory.json_object(SETTINGS) if checkpoint.directory.has(SETTINGS) else {}


def _compare_weight_files(source: Checkpoint, converted: Checkpoint) -> str:
    """Compares headers and hashes of the safetensors files, from disk or from provenance.json."""
    ours, theirs = (_weight_files(c) for c in (source, converted))
    faults = [f"differs: {name}" for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    raise_faults(f"{converted.directory.root}: safetensors files differ from provenance.json:", faults)
    return f"{len(ours)} safetensors files have the same header and sha256, or are recorded with them"


def _weight_files(checkpoint: Checkpoint) -> dict[str, tuple[str, object]]:
    """Header, and size with sha256, of each safetensors file, by relative path."""
    weights = checkpoint.weights
    if isinstance(weights, FlaxWeights):
        files = weights.provenance.get("files", {})
    else:
        files = hashed(checkpoint.directory, list(weights.headers))
    return {name: (header, files.get(name)) for name, header in weights.headers.items()}


def _compare_results(source: Checkpoint, converted: Checkpoint) -> str:
    ours, theirs = map(_results, (source, converted))
    what = "pairs have the same scores" if source.spec.is_reranker else "texts have the same embeddings"
    if not np.array_equal(ours, theirs):
        what = what.split()[-1]
        raise StellaError(
            f"{converted.directory.root}: {what} differ from the source's by up to {np.abs(ours - theirs).max():.2e}."
        )
    return f"{len(ours)} {what}, bit for bit"


def _results(checkpoint: Checkpoint) -> np.ndarray:
    """Embeddings of a few texts, or raw scores of pairs of these texts."""
    if checkpoint.spec.is_reranker:
        return Reranker(checkpoint, dtype="float32").predict([*zip(TEXTS, TEXTS[::-1], strict=True)], activation="none")
    return Stella(checkpoint, dtype="float32").encode(list(TEXTS))
