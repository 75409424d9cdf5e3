"""Writes a model in the sentence-transformers layout; what has not changed since loading is written byte for byte."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stella_jax.checkpoint.checkpoint import Checkpoint, leaf_paths
from stella_jax.checkpoint.directory import SETTINGS, write_json
from stella_jax.checkpoint.model_spec import ModelSpec
from stella_jax.checkpoint.torch_layout import to_torch, write_query_prompt
from stella_jax.checkpoint.weights import Leaf, Weights, check_finite
from stella_jax.embedding_model import EmbeddingModel
from stella_jax.errors import StellaError
from stella_jax.lora import merge_lora
from stella_jax.models.heads import Head
from stella_jax.storage.new_directory import check_destination

DENSE = "sentence_transformers.models.Dense"


class ChangedWeights:
    """A checkpoint's weights with some leaves changed; changed leaves are float32.

    Args:
      base: the original weights.
      params: path of a leaf -> its new array. An array that equals the original, in its own dtype, is unchanged.
    """

    def __init__(self, base: Weights, params: Mapping[str, jax.Array]):
        self._base = base
        self.changed = {path: array for path, array in params.items() if not _same(base.read(path), array)}
        self.leaves: dict[str, Leaf] = base.leaves
        self.dtypes: dict[str, np.dtype] = base.dtypes | dict.fromkeys(self.changed, np.dtype(np.float32))
        self.prefix = base.prefix
        self.headers = base.headers

    def read(self, path: str) -> np.ndarray:
        """One leaf, contiguous.

        Raises:
          StellaError: it holds NaN or infinity.
        """
        if path not in self.changed:
            return self._base.read(path)
        array = np.ascontiguousarray(self.changed[path], dtype=np.float32)
        check_finite(array, path)
        return array


def _same(stored: np.ndarray, array: jax.Array) -> bool:
    now = np.asarray(array)
    return np.array_equal(stored.astype(now.dtype, copy=False), now)


def save_model(
    model: EmbeddingModel, destination: str | Path, *, native: bool = False, settings: ModelSpec | None = None
) -> None:
    """Implements `EmbeddingModel.save_pretrained`; `settings` as in `save_params`."""
    if model.source is None:
        raise StellaError(
            "save_pretrained: the model was not loaded from a checkpoint, so it has no tokenizer; load it with "
            "stella_jax.load."
        )
    if not Path(model.source).is_dir():
        raise StellaError(
            f"{model.source}: the checkpoint that the model was loaded from is gone; load the model again."
        )
    destination = check_destination(destination, Path(model.source))
    checkpoint = Checkpoint.open(Path(model.source))
    for name in ("pooling", "normalize"):
        if getattr(model, name) != getattr(checkpoint.spec, name):
            raise _misfit(checkpoint, name)
    heads = [head and head.spec for head in model.heads]
    try:
        save_params(checkpoint, heads, merge_lora(model).params(), destination, native=native, settings=settings)
    except OSError as error:
        raise StellaError(f"{error.filename or destination}: cannot be written ({error.strerror}).") from error


def save_params(
    checkpoint: Checkpoint,
    heads: Sequence[Head | None],
    params: Mapping[str, jax.Array],
    destination: Path,
    *,
    native: bool = False,
    settings: ModelSpec | None = None,
    finish: Callable[[Path], object] = lambda working: None,
) -> None:
    """Writes a checkpoint with some parameters replaced into a new directory.

    Args:
      heads: the model's heads; modules.json will name the first.
      params: new parameters, by the names of `EmbeddingModel.params`; all others are unchanged.
      settings: has the prompts, similarity and max_seq_length to write; None is the checkpoint's own.
      native, finish: as in `to_torch`.

    Raises:
      StellaError: as in `to_torch`; or a head or a parameter does not fit the checkpoint.
    """
    spec = checkpoint.spec
    settings = settings or spec
    weights = ChangedWeights(checkpoint.weights, _by_path(checkpoint, heads, params))

    def complete(working: Path) -> None:
        if weights.changed:  # everything is then computed in float32, even weights that are stored in less
            _update(working / spec.file("config.json"), torch_dtype="float32", dtype="float32")
        if heads[0] and not spec.is_reranker:
            _write_default_head(working / "modules.json", heads[0])
        _write_settings(spec, settings, working)
        write_query_prompt(working)
        if settings.max_seq_length != spec.max_seq_length:
            _write_max_seq_length(working, spec.file, settings.max_seq_length)
        finish(working)

    to_torch(dataclasses.replace(checkpoint, weights=weights), destination, native=native, finish=complete)


def _by_path(
    checkpoint: Checkpoint, heads: Sequence[Head | None], params: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The parameters by the paths of the checkpoint's leaves.

    Raises:
      StellaError: the checkpoint does not have these heads or parameters, or it names a head and `heads` has none.
    """
    spec, weights = checkpoint.spec, checkpoint.weights
    if not {*heads} <= {spec.head(None), *spec.heads.values()}:
        raise _misfit(checkpoint, "heads")
    paths = leaf_paths(heads, weights)
    for name, array in params.items():
        if name not in paths or weights.leaves[paths[name]].shape != array.shape:
            raise _misfit(checkpoint, name)
    return {paths[name]: array for name, array in params.items()}


def _misfit(checkpoint: Checkpoint, name: str) -> StellaError:
    return StellaError(
        f"{checkpoint.directory.root}: the checkpoint and the model differ in {name}, since one of them was changed "
        "after loading; load the model again."
    )


def _write_settings(before: ModelSpec, now: ModelSpec, working: Path) -> None:
    """Writes prompts and similarity if they have changed."""
    fields = {"prompts": "prompts", "default_prompt_name": "default_prompt_name", "similarity": "similarity_fn_name"}
    changed = {key: getattr(now, name) for name, key in fields.items() if getattr(now, name) != getattr(before, name)}
    if changed:
        _update(working / SETTINGS, **changed)


def _write_default_head(path: Path, head: Head) -> None:
    listing = json.loads(path.read_bytes())
    if head.folder not in [str(module["path"]).strip("/") for module in listing]:
        write_json(path, _modules(listing, head))


def _modules(listing: list[dict[str, Any]], head: Head) -> list[dict[str, Any]]:
    """modules.json with this head, in place of another one or after the pooling."""
    kinds = [str(module["type"]).rpartition(".")[2] for module in listing]
    if "Dense" in kinds:
        return [m | {"path": head.folder} if kind == "Dense" else m for m, kind in zip(listing, kinds, strict=True)]
    index = kinds.index("Pooling") + 1
    listing = [*listing[:index], {"path": head.folder, "type": DENSE}, *listing[index:]]
    return [module | {"idx": i, "name": str(i)} for i, module in enumerate(listing)]


def _write_max_seq_length(working: Path, file: Callable[[str], str], value: int) -> None:
    """Writes it to sentence_bert_config.json if that has it, else (newer directories) to tokenizer_config.json."""
    bert, tokenizer = (working / file(name) for name in ("sentence_bert_config.json", "tokenizer_config.json"))
    if bert.exists() and "max_seq_length" in json.loads(bert.read_bytes()):
        _update(bert, max_seq_length=value)
    else:
        _update(tokenizer, model_max_length=value)


def _update(path: Path, **fields: Any) -> None:
    before = json.loads(path.read_bytes()) if path.exists() else {}
    write_json(path, before | fields)
