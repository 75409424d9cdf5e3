"""Writes a checkpoint in the PyTorch layout: the original safetensors files, or those of transformers' own class."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.directory import SETTINGS, write_json
from stella_jax.checkpoint.flax_weights import FlaxWeights
from stella_jax.checkpoint.hashes import sha256_of_array
from stella_jax.checkpoint.prompts import with_query_prompt
from stella_jax.checkpoint.safetensors_writer import SafetensorsWriter, new_header
from stella_jax.checkpoint.shards import DTYPES, parse_header
from stella_jax.checkpoint.side_files import copy_side_files
from stella_jax.checkpoint.weights import Leaf
from stella_jax.storage.new_directory import check_inside, new_directory
from stella_jax.tokenizer.json_file import load_tokenizer
from stella_jax.tokenizer.tokenizer import append_end_of_text

# Fields that the new config.json takes unchanged from the old one.
KEPT = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "bos_token_id",
    "classifier_dropout",
    "eos_token_id",
    "hidden_dropout_prob",
    "id2label",
    "label2id",
    "sbert_ce_default_activation_function",
    "sentence_transformers",
    "initializer_range",
)

Headers = dict[str, str]
OnLeaf = Callable[[str], object]


def to_torch(
    source: Checkpoint,
    destination: Path,
    *,
    native: bool = False,
    accept_changes: bool = False,
    on_leaf: OnLeaf = lambda path: None,
    finish: Callable[[Path], object] = lambda working: None,
) -> None:
    """Writes a checkpoint into a new directory with its original names, prefix, dtypes, bits and files.

    Args:
      source: an opened checkpoint in either layout; see `Checkpoint.open`.
      destination: the directory to write; must not exist.
      native: write the names and the config.json of transformers' own class (so that sentence-transformers loads the
        directory without remote code), and the prompt of queries under the name `query` as well.
      accept_changes: accept leaves whose hash differs from provenance.json, since they were changed on purpose.
      on_leaf: called with the path of each written leaf.
      finish: called at the end with the directory under its temporary name, to change or add files.

    Raises:
      StellaError: a leaf has changed since the conversion, a file would be outside of the directory, the destination
        exists, or the disk is full. Nothing is left behind.
    """
    headers = _headers(source, native)
    check_inside([*headers, source.spec.file("config.json")])
    weights = source.weights
    needed = sum(int(np.prod(leaf.shape)) * weights.dtypes[path].itemsize for path, leaf in weights.leaves.items())
    with new_directory(destination, needed) as working:
        copy_side_files(source.directory, working)
        _remove_stale_indexes(working, headers)
        with ExitStack() as stack:
            writers = {name: stack.enter_context(_writer(working / name, header)) for name, header in headers.items()}
            for path, leaf in weights.leaves.items():
                array = weights.read(path)
                if isinstance(weights, FlaxWeights) and not accept_changes:
                    weights.check_unchanged(path, sha256_of_array(array))
                folder = leaf.folder
                for name, tensor in leaf.to_torch(array):
                    name = _native_name(source, leaf, name) if native else name
                    _writer_of(writers, folder, name).write(name, tensor)
                on_leaf(path)
        if native:
            _write_native_config(source, working)
            if tokenizer := native_tokenizer(source):
                (working / source.spec.file("tokenizer.json")).write_text(tokenizer, encoding="utf-8")
            write_query_prompt(working)
        finish(working)


def _native_name(source: Checkpoint, leaf: Leaf, name: str) -> str:
    """The name of a tensor in transformers' own class: without prefix, or with another prefix for a reranker."""
    bare, scorer = name.removeprefix(source.weights.prefix), source.spec.architecture.scorer
    if not source.spec.is_reranker or scorer is None or leaf.weight in scorer.classifier:
        return bare
    return scorer.native_prefix + bare


def _remove_stale_indexes(working: Path, headers: Headers) -> None:
    """Removes the index of shards that became one file."""
    for file in headers:
        if Path(file).name == "model.safetensors":
            (working / f"{file}.index.json").unlink(missing_ok=True)


def _writer(path: Path, header: str) -> SafetensorsWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    return SafetensorsWriter(path, header)


def _writer_of(writers: dict[str, SafetensorsWriter], folder: str, name: str) -> SafetensorsWriter:
    return next(w for file, w in writers.items() if _folder(file) == folder and name in w)


def _folder(file: str) -> str:
    return file.rpartition("/")[0]


def _headers(source: Checkpoint, native: bool) -> Headers:
    """The header of each file to write: the original one if it still fits, else a new one for the module."""
    original = {} if native else source.weights.headers
    headers: Headers = {}
    for folder, tensors in _tensors(source, native).items():
        originals = {file: header for file, header in original.items() if _folder(file) == folder}
        if _described(originals) == tensors:
            headers |= originals
        else:
            headers[f"{folder}/model.safetensors".lstrip("/")] = new_header(tensors)
    return headers


def _tensors(source: Checkpoint, native: bool) -> dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]]:
    """Folder -> torch name -> dtype and shape, of all tensors to write."""
    folders: dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]] = {}
    for path, leaf in source.weights.leaves.items():
        for name in leaf.torch_names:
            name = _native_name(source, leaf, name) if native else name
            folders.setdefault(leaf.folder, {})[name] = (source.weights.dtypes[path], leaf.torch_shape())
    return folders


def _described(headers: Headers) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    tensors: Iterator = (tensor for file, header in headers.items() for tensor in parse_header(Path(file), header))
    return {tensor.name: (DTYPES[tensor.dtype], tensor.shape) for tensor in tensors}


def _write_native_config(source: Checkpoint, working: Path) -> None:
    name = source.spec.file("config.json")
    old = source.directory.json_object(name)
    fields = source.spec.config.native_json()
    if source.spec.is_reranker and (scorer := source.spec.architecture.scorer):
        fields |= scorer.native_json()
    fields |= {key: old[key] for key in KEPT if key in old}
    write_json(working / name, fields)


def native_tokenizer(source: Checkpoint) -> str | None:
    """tokenizer.json with the end-of-text token, which transformers does not add by itself; None if it is unchanged."""
    spec = source.spec
    if spec.end_of_text is None:
        return None
    tokenizer = load_tokenizer(source.directory.path(spec.file("tokenizer.json")))
    return tokenizer.to_str(pretty=True) if append_end_of_text(tokenizer, spec.end_of_text) else None


def write_query_prompt(working: Path) -> None:
    """Adds the prompt `query` to the settings; without such a change, the file keeps its bytes."""
    path = working / SETTINGS
    if path.exists():
        old = json.loads(path.read_bytes())
        new = with_query_prompt(old)
        if new != old:
            write_json(path, new)
