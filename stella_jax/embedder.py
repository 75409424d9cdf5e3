"""Stella: what a user holds. Texts in, embeddings out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from stella_jax import similarity
from stella_jax.checkpoint import Checkpoint, compute_dtype
from stella_jax.config import EncoderConfig
from stella_jax.errors import StellaError, shown
from stella_jax.hub import resolve
from stella_jax.layout import listed
from stella_jax.runner import OnBatch, Runner
from stella_jax.save import save_model
from stella_jax.sharding import make_mesh
from stella_jax.tokenizer import Tokens, check_text, describe

MOST_ROWS = 1_000_000


class Stella:
    """An embedding model of the `NewModel` family; make one with `Stella.from_pretrained`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dim: int | tuple[int, ...] | None = None,
        dtype: str | None = None,
        mesh: Mesh | None = None,
    ):
        layout = checkpoint.layout
        self.heads = tuple(map(layout.head, dim)) if isinstance(dim, tuple) else (layout.head(dim),)
        mesh = mesh or make_mesh()
        self.checkpoint = checkpoint
        self.platform = mesh.devices.flat[0].platform
        self.dtype = compute_dtype(dtype, mesh)
        self.tokenizer = checkpoint.tokenizer()
        self.model = checkpoint.load_model(self.heads, mesh, dtype=self.dtype, param_dtype=self.dtype)
        self.runner = Runner(self.model, mesh, layout.config.pad_token_id)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        dim: int | tuple[int, ...] | None = None,
        dtype: str | None = None,
        mesh: Mesh | str | None = None,
        revision: str | None = None,
    ) -> "Stella":
        """Loads a checkpoint.

        Args:
          name_or_path: "tiny" (embedded), a directory (sentence-transformers layout, or what `convert` wrote), or a
            repo id on the hub.
          dim: which Dense head, by its dimension; None takes the one that the checkpoint names. Of several, `encode`
            uses the first, and `runner` all.
          dtype: "float32" or "bfloat16" to compute in; None is float32 on CPU and bfloat16 elsewhere.
          mesh: devices to share the work, as a mesh of the axes `data` (rows) and `model` (the encoder's own split) or
            as text, "data=8" or "data=4,model=2"; None is one device. Over `data` a text's bits stay the same.
          revision: branch, tag or commit of a repo.

        Raises:
          StellaError: one sentence on what is wrong with the checkpoint or the arguments.
        """
        mesh = make_mesh(mesh) if isinstance(mesh, str) else mesh
        return cls(Checkpoint.open(resolve(name_or_path, revision)), dim=dim, dtype=dtype, mesh=mesh)

    @property
    def config(self) -> EncoderConfig:
        return self.checkpoint.layout.config

    @property
    def mesh(self) -> Mesh:
        """The devices, by the axes `data` and `model`."""
        return self.runner.mesh

    @property
    def dim(self) -> int:
        """Numbers in an embedding."""
        return self.runner.dims[0]

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions that `from_pretrained(dim=...)` can pick from."""
        return self.checkpoint.layout.dims

    @property
    def prompts(self) -> dict[str, str]:
        return dict(self.checkpoint.layout.prompts)

    @property
    def max_seq_length(self) -> int:
        """Tokens at which a text is cut; may be set, up to the encoder's `max_position_embeddings`."""
        return self.tokenizer.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        _check_whole("max_seq_length", value, self.config.max_position_embeddings)
        self.tokenizer.max_length = value

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Embeds texts, as sentence-transformers' method of this name does.

        A text's numbers do not depend on the others in the list, on its place, or on how many there are.

        Args:
          sentences: a text, or a list of them.
          prompt_name: name of one of `prompts`, put before each text.
          prompt: a prompt itself; wins over `prompt_name`.
          batch_size: most rows of a batch on a device; None lets the shape decide.
          show_progress_bar: a bar on stderr.
          output_value: "sentence_embedding", or "token_embeddings" for the encoder's vectors of each token.
          precision: "float32"; "binary" and "ubinary" give the signs, packed eight to a byte (int8 and uint8).
          normalize_embeddings: scale to unit length, after `truncate_dim`.
          truncate_dim: keep the first numbers only.

        Returns:
          [n, dim] float32 in the order of the texts, (0, dim) for none, [dim] for a lone str; with "token_embeddings"
          a list of [tokens, hidden_size], or one of them.

        Raises:
          StellaError: a text is not a str (says which), or an argument is unknown.
        """
        _check_choice("precision", precision, ("float32", "binary", "ubinary"))
        _check_choice("output_value", output_value, ("sentence_embedding", "token_embeddings"))
        _check_whole("truncate_dim", self.dim if truncate_dim is None else truncate_dim, self.dim)
        _check_whole("batch_size", 1 if batch_size is None else batch_size, MOST_ROWS)
        alone = isinstance(sentences, str)
        texts = check_texts([sentences] if alone else sentences)
        tokens = self.tokenize(texts, self.resolve_prompt(prompt_name, prompt))
        max_rows = 1 if alone else batch_size
        with tqdm(total=len(texts), unit="text", disable=not show_progress_bar) as bar:
            embed = self._token_embeddings if output_value == "token_embeddings" else self.embed_tokens
            result = embed(tokens, max_rows, lambda batch: bar.update(len(batch.texts)))
        if isinstance(result, list):
            return result[0] if alone else result
        embeddings = result[:, :truncate_dim]
        if normalize_embeddings:
            embeddings = similarity.unit(embeddings)
        embeddings = _quantize(embeddings, precision)
        return embeddings[0] if alone else embeddings

    def encode_query(
        self, sentences: str | Sequence[str], prompt_name: str | None = None, prompt: str | None = None, **options: Any
    ) -> Any:
        """`encode` for queries: with the prompt `query` where the checkpoint has one, else `s2p_query`, else none."""
        if prompt_name is None and prompt is None:
            prompt_name = next((name for name in ("query", "s2p_query") if self.prompts.get(name)), None)
        return self.encode(sentences, prompt_name, prompt, **options)

    def encode_document(
        self, sentences: str | Sequence[str], prompt_name: str | None = None, prompt: str | None = None, **options: Any
    ) -> Any:
        """`encode` for documents: without a prompt, unless the checkpoint has one named `document`."""
        if prompt_name is None and prompt is None:
            return self.encode(sentences, prompt=self.prompts.get("document", ""), **options)
        return self.encode(sentences, prompt_name, prompt, **options)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """[n, m] similarities, by the checkpoint's own measure (cosine where it names none), float32."""
        return similarity.similarity(self.checkpoint.layout.similarity, a, b)

    def similarity_pairwise(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """[n] similarities of row i with row i."""
        return similarity.similarity_pairwise(self.checkpoint.layout.similarity, a, b)

    def save_pretrained(self, directory: str | Path, *, native: bool = False) -> None:
        """`EmbeddingModel.save_pretrained`, with a `max_seq_length` that was set."""
        save_model(self.model, Path(directory), native=native, max_seq_length=self.max_seq_length)

    def resolve_prompt(self, prompt_name: str | None = None, prompt: str | None = None) -> str:
        """The text to put before each text: `prompt`, or the one of this name, or the checkpoint's default, or ""."""
        if prompt is not None:
            return check_text(prompt, "prompt")
        name = self.checkpoint.layout.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return ""
        return self.checkpoint.layout.prompt(name)

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[Tokens]:
        """Token ids of each text after the prompt, cut at `max_seq_length`."""
        return self.tokenizer.encode(texts, prompt)

    def embed_tokens(
        self, tokens: Sequence[Tokens], max_rows: int | None = None, on_batch: OnBatch | None = None
    ) -> np.ndarray:
        """Embeddings [n, dim] float32 of tokenized texts, in their order."""
        [(_, found)] = self.runner.stream([tokens], self.max_seq_length, max_rows, on_batch)
        return found[0]

    def _token_embeddings(
        self, tokens: Sequence[Tokens], max_rows: int | None, on_batch: OnBatch | None
    ) -> list[np.ndarray]:
        return self.runner.token_embeddings(tokens, self.max_seq_length, max_rows, on_batch)


def check_texts(sentences: object) -> list[str]:
    """The texts as a list.

    Raises:
      StellaError: it is no list of str; says which element is what.
    """
    lone = isinstance(sentences, np.ndarray) and not sentences.ndim
    if lone or isinstance(sentences, bytes) or not isinstance(sentences, Sequence | np.ndarray):
        raise StellaError(f"sentences is {describe(sentences)}; pass a str or a list of str.")
    return [check_text(text, f"sentences[{i}]") for i, text in enumerate(sentences)]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = "; int8 ranges come from other texts, so quantize afterwards" if value in ("int8", "uint8") else ""
        raise StellaError(f"{name} {shown(value)} is not offered; {listed(choices)} are{hint}.")


def _check_whole(name: str, value: object, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= highest:
        raise StellaError(f"{name} {shown(value)} must be a whole number from 1 to {highest}.")


def _quantize(embeddings: np.ndarray, precision: str) -> np.ndarray:
    if precision == "float32":
        return embeddings
    bits = np.packbits(embeddings > 0, axis=-1)
    return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
