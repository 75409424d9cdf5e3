"""The base class of `Stella` and `Reranker`: a checkpoint, its weights on a mesh, its tokenizer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
from jax.sharding import Mesh

from stella_jax.arguments import check_device, check_whole
from stella_jax.checkpoint.checkpoint import Checkpoint, compute_dtype
from stella_jax.checkpoint.config import EncoderConfig
from stella_jax.checkpoint.hub import resolve
from stella_jax.checkpoint.save import save_model
from stella_jax.embedding_model import EmbeddingModel
from stella_jax.errors import StellaError, short_repr
from stella_jax.runner import OnBatch, Runner
from stella_jax.sharding import make_mesh
from stella_jax.tokenizer.tokenizer import Tokens


def open_pretrained(
    name_or_path: str | Path, revision: str | None, mesh: Mesh | str | None, device: object, **hub: Any
) -> tuple[Checkpoint, Mesh]:
    """The checkpoint and the mesh of a call of `from_pretrained`; `hub` has the other arguments of `resolve`."""
    mesh = make_mesh(mesh)
    check_device(device, mesh.devices.flat[0].platform)
    return Checkpoint.open(resolve(name_or_path, revision, **hub)), mesh


class PretrainedModel(ABC):
    """A checkpoint with a tokenizer: `embedder.Stella` or `reranker.Reranker`."""

    def __new__(cls, checkpoint: object = None, *_: Any, **__: Any) -> Self:
        if isinstance(checkpoint, str | Path):
            name, path = cls.__name__, short_repr(str(checkpoint))
            raise StellaError(f"{name}: expected an opened checkpoint, got {path}; use {name}.from_pretrained({path}).")
        return super().__new__(cls)

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dim: int | tuple[int, ...] | None = None,
        dtype: str | None = None,
        mesh: Mesh | None = None,
        load: bool = True,
    ):
        spec = checkpoint.spec
        self.heads = spec.chosen_heads(dim)
        self.mesh = make_mesh(mesh)
        self.checkpoint = checkpoint
        self.platform = self.mesh.devices.flat[0].platform
        self.dtype = compute_dtype(dtype, self.mesh)
        self.tokenizer = checkpoint.tokenizer()
        self._loading, self._loaded = Lock(), None
        if load:
            self.load_weights()

    def load_weights(self) -> tuple[EmbeddingModel, Runner]:
        """Loads the weights onto the mesh, once; may be called from any thread."""
        with self._loading:
            if self._loaded is None:
                model = self.checkpoint.load_model(self.heads, self.mesh, dtype=self.dtype, param_dtype=self.dtype)
                self._loaded = model, Runner(model, self.mesh, self.config.pad_token_id)
            return self._loaded

    @property
    def model(self) -> EmbeddingModel:
        return self.load_weights()[0]

    @property
    def runner(self) -> Runner:
        return self.load_weights()[1]

    @property
    def head_dims(self) -> tuple[int, ...]:
        """The dimension of each chosen head."""
        return tuple(head.dim if head else self.config.hidden_size for head in self.heads)

    @property
    def config(self) -> EncoderConfig:
        """The encoder's sizes and constants."""
        return self.checkpoint.spec.config

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts, by name: texts to put before a text."""
        return dict(self.checkpoint.spec.prompts)

    @property
    def max_seq_length(self) -> int:
        """Number of tokens at which a text or pair is cut; can be set, up to the config's `max_position_embeddings`."""
        return self.tokenizer.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        check_whole("max_seq_length", value, self.config.max_position_embeddings)
        self.tokenizer.max_length = value

    def save_pretrained(self, directory: str | Path, *, native: bool = False) -> None:
        """`EmbeddingModel.save_pretrained` with this model's settings, such as `max_seq_length`."""
        settings = replace(self.checkpoint.spec, max_seq_length=self.max_seq_length)
        save_model(self.model, directory, native=native, settings=settings)

    @abstractmethod
    def tokenize(self, texts: Sequence[Any], prompt: str = "") -> list[Tokens]:
        """Token ids of each text with the prompt before it, cut at `max_seq_length`; a reranker's texts are pairs."""

    def run_tokens(
        self, tokens: Sequence[Tokens], max_batch_rows: int | None = None, on_batch: OnBatch | None = None
    ) -> np.ndarray:
        """The first head's output for tokenized texts, [n, dim] float32, in their order."""
        [(_, found)] = self.runner.stream([tokens], self.max_seq_length, max_batch_rows, on_batch)
        return found[0]
