"""Stella: texts in, embeddings out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from stella_jax import similarity
from stella_jax.arguments import (
    MAX_ROWS,
    check_choice,
    check_device,
    check_flags,
    check_no_processes,
    check_not_traced,
    check_texts,
    check_whole,
)
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.checkpoint.prompts import query_prompt_name
from stella_jax.errors import StellaError
from stella_jax.model_card import ModelCardData
from stella_jax.output_format import OutputFormat
from stella_jax.pretrained import PretrainedModel, open_pretrained
from stella_jax.runner import OnBatch
from stella_jax.tokenizer.tokenizer import Tokens, check_text
from stella_jax.torch_tensors import like, to_numpy

Texts = str | Sequence[str]


class Stella(PretrainedModel):
    """An embedding model; load one with `Stella.from_pretrained`.

    Its methods are named as in sentence-transformers' SentenceTransformer, whose evaluators accept a `Stella`.
    """

    _truncate_dim: int | None = None

    def __init__(self, checkpoint: Checkpoint, **options: Any):
        checkpoint.check_embeds("use Reranker.from_pretrained or the command score")
        super().__init__(checkpoint, **options)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        dim: int | tuple[int, ...] | None = None,
        dtype: str | None = None,
        mesh: Mesh | str | None = None,
        revision: str | None = None,
        *,
        truncate_dim: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        device: object = None,
    ) -> "Stella":
        """Loads a checkpoint.

        Args:
          name_or_path: "tiny" (included), a directory (sentence-transformers layout, or written by `convert`), or a
            repo id on the Hugging Face Hub.
          dim: dimension of the Dense head to use; None is the one that the checkpoint names. Given several, `encode`
            uses the first, and `runner` all.
          dtype: "float32" or "bfloat16", for the computation; None is float32 on CPU and bfloat16 elsewhere.
          mesh: devices that share the work: a mesh with the axes `data` (rows) and `model` (tensor parallelism), or a
            text such as "data=8" or "data=4,model=2"; None is one device. A text's bits do not depend on `data`.
          revision: branch, tag or commit of a repo.
          truncate_dim: default of `encode`: how many numbers of an embedding to keep.
          prompts: texts by name, added to the checkpoint's prompts or replacing them.
          default_prompt_name: the prompt that `encode` uses by default.
          similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan"; None is the checkpoint's own.
          cache_folder: folder for downloads; None is the Hub's own cache.
          local_files_only: use only the cache, and download nothing.
          token: for a private repo; None is the token of `hf auth login`.
          trust_remote_code: ignored; code of a checkpoint is never run.
          device: None, or the platform that the model runs on anyway ("cpu", "cuda", "tpu").

        Raises:
          StellaError: the checkpoint or an argument is not valid or not supported.
        """
        hub = {"cache_folder": cache_folder, "local_files_only": local_files_only, "token": token}
        checkpoint, mesh = open_pretrained(name_or_path, revision, mesh, device, **hub)
        spec = checkpoint.spec.changed(prompts, default_prompt_name, similarity_fn_name)
        model = cls(replace(checkpoint, spec=spec), dim=dim, dtype=dtype, mesh=mesh)
        model.truncate_dim = truncate_dim
        return model

    @property
    def dim(self) -> int:
        """Size of an embedding, after `truncate_dim`."""
        return self.truncate_dim or self.head_dims[0]

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions that `from_pretrained(dim=...)` accepts."""
        return self.checkpoint.spec.dims

    @property
    def truncate_dim(self) -> int | None:
        """How many numbers of an embedding `encode` keeps; None keeps all. Can be set."""
        return self._truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, value: int | None) -> None:
        if value is not None:
            check_whole("truncate_dim", value, self.head_dims[0])
        self._truncate_dim = value

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Sets `truncate_dim` inside a `with` block."""
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    def get_embedding_dimension(self) -> int:
        """`dim`, under its name in sentence-transformers."""
        return self.dim

    get_sentence_embedding_dimension = get_embedding_dimension

    def get_max_seq_length(self) -> int:
        """`max_seq_length`, under its name in sentence-transformers."""
        return self.max_seq_length

    def encode(
        self,
        sentences: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str | None = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        inputs: Texts | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: object = None,
        pool: None = None,
        chunk_size: None = None,
    ) -> Any:
        """Embeds texts, like the method of the same name in sentence-transformers.

        The embedding of a text does not depend on the other texts, their number or their order.

        Args:
          sentences: a text, or a list of texts.
          prompt_name: name of the prompt (see `prompts`) to put before each text.
          prompt: the text of a prompt; takes precedence over `prompt_name`.
          batch_size: maximum number of rows of a batch on a device; None is the best number for each length.
          show_progress_bar: whether to show a bar on stderr.
          output_value: "sentence_embedding", or "token_embeddings" for the encoder's vector of each token.
          precision: "float32" or None; "int8" and "uint8" have 256 levels from the minimum to the maximum of each
            dimension over these texts, so a result then depends on the other texts (`quantize` accepts your own
            ranges); "binary" and "ubinary" are the signs, packed eight to a byte (int8 and uint8).
          normalize_embeddings: whether to scale to unit length, after `truncate_dim`.
          truncate_dim: how many numbers to keep; None is the model's own `truncate_dim`.
          inputs: another name for `sentences`.
          convert_to_numpy: False returns a list of torch tensors, one per text.
          convert_to_tensor: True returns one torch tensor, on the CPU.
          device: None, or the platform that the model runs on anyway ("cpu", "cuda", "tpu").
          pool: only None.
          chunk_size: only None.

        Returns:
          [n, dim] float32 in the order of the texts, (0, dim) for an empty list, [dim] for a single str; with
          "token_embeddings" a list of [tokens, hidden_size], or a single one.

        Raises:
          StellaError: a text is not a str (the error says which), an argument is not valid, the prompt leaves no
            room for a text within `max_seq_length`, torch is needed but not installed, int8 or uint8 have only one
            text, or the call is inside a function that JAX transforms.
        """
        truncate_dim = self.dim if truncate_dim is None else truncate_dim
        check_choice("output_value", output_value, ("sentence_embedding", "token_embeddings"))
        check_whole("truncate_dim", truncate_dim, self.head_dims[0])
        check_whole("batch_size", 1 if batch_size is None else batch_size, MAX_ROWS)
        check_flags(
            normalize_embeddings=normalize_embeddings,
            show_progress_bar=show_progress_bar,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
        )
        check_device(device, self.platform)
        check_no_processes(pool, chunk_size)
        check_not_traced(self.mesh)
        if inputs is not None and sentences is not None:
            raise StellaError("inputs: another name for sentences; pass only one of them.")
        output = OutputFormat(truncate_dim, normalize_embeddings, precision, convert_to_numpy, convert_to_tensor)
        sentences = inputs if sentences is None else sentences
        is_single = isinstance(sentences, str)
        texts = check_texts([sentences] if is_single else sentences)
        tokens = self.tokenize(texts, self.resolve_prompt(prompt_name, prompt))
        max_batch_rows = 1 if is_single else batch_size
        with tqdm(total=len(texts), unit="text", disable=not show_progress_bar) as bar:
            embed = self._token_embeddings if output_value == "token_embeddings" else self.run_tokens
            found = output(embed(tokens, max_batch_rows, lambda batch: bar.update(len(batch.texts))))
        return found[0] if is_single else found

    def encode_query(
        self, sentences: Texts | None = None, prompt_name: str | None = None, prompt: str | None = None, **options: Any
    ) -> Any:
        """`encode` for queries: with the prompt `query` or else `s2p_query`, if the checkpoint has one of them."""
        if prompt_name is None and prompt is None:
            prompt_name = query_prompt_name(self.prompts)
        return self.encode(sentences, prompt_name, prompt, **options)

    def encode_document(
        self, sentences: Texts | None = None, prompt_name: str | None = None, prompt: str | None = None, **options: Any
    ) -> Any:
        """`encode` for documents: with the prompt `document`, if the checkpoint has it."""
        if prompt_name is None and prompt is None:
            return self.encode(sentences, prompt=self.prompts.get("document", ""), **options)
        return self.encode(sentences, prompt_name, prompt, **options)

    @property
    def similarity_fn_name(self) -> str:
        """The function of `similarity`: the checkpoint's own, or cosine. Can be set."""
        return self.checkpoint.spec.similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: str | None) -> None:
        spec = self.checkpoint.spec.changed(similarity="cosine" if value is None else value)
        self.checkpoint = replace(self.checkpoint, spec=spec)

    def similarity(self, a: Any, b: Any) -> Any:
        """Similarities of every row of a with every row of b, by `similarity_fn_name`.

        Args:
          a: [n, dim], or [dim] for a single embedding; an array, a torch tensor, or a list of them.
          b: [m, dim], otherwise as a.

        Returns:
          [n, m] float32, higher for more similar rows (distances are negated), as a numpy array, or a torch tensor if
          one was passed.

        Raises:
          StellaError: they are not numbers, or their rows have different lengths.
        """
        return self._compared(similarity.similarity, a, b)

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        """Similarities [n] float32 of row i of a and row i of b, [n, dim] each; otherwise as `similarity`.

        Raises:
          StellaError: they are not numbers, or their shapes differ.
        """
        return self._compared(similarity.similarity_pairwise, a, b)

    def _compared(self, function: Callable[[str, Any, Any], np.ndarray], a: Any, b: Any) -> Any:
        return like(function(self.similarity_fn_name, to_numpy(a), to_numpy(b)), a, b)

    def evaluate(self, evaluator: Callable[..., Any], output_path: str | None = None) -> Any:
        """Runs an evaluator of sentence-transformers on this model, and returns its result."""
        return evaluator(self, output_path)

    @cached_property
    def model_card_data(self) -> ModelCardData:
        """The metrics that evaluators have reported."""
        return ModelCardData()

    def resolve_prompt(self, prompt_name: str | None = None, prompt: str | None = None) -> str:
        """The text to put before each text: `prompt`, or the prompt of this name, or the default prompt, or ""."""
        if prompt is not None:
            return check_text(prompt, "prompt")
        name = self.checkpoint.spec.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return ""
        return self.checkpoint.spec.prompt(name)

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[Tokens]:
        """Token ids of each text of a list with the prompt before it, cut at `max_seq_length`.

        Returns:
          A named tuple for each text, of `ids`, with the special tokens, and `truncated`, whether it was cut.
        """
        return self.tokenizer.encode(texts, prompt)

    def _token_embeddings(
        self, tokens: Sequence[Tokens], max_batch_rows: int | None, on_batch: OnBatch | None
    ) -> list[np.ndarray]:
        return self.runner.token_embeddings(tokens, self.max_seq_length, max_batch_rows, on_batch)
