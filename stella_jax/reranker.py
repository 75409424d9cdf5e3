"""Reranker: scores pairs of a query and a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from stella_jax.arguments import (
    MAX_ROWS,
    check_choice,
    check_not_traced,
    check_pairs,
    check_texts,
    check_whole,
)
from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.option_values import SCORE_ACTIVATIONS
from stella_jax.pretrained import PretrainedModel, open_pretrained
from stella_jax.scores import activate
from stella_jax.tokenizer.pair_tokenizer import Pair, PairTokenizer
from stella_jax.tokenizer.tokenizer import Tokens, check_text


class Reranker(PretrainedModel):
    """A reranker of the `NewModel` family; load one with `Reranker.from_pretrained`.

    `predict` and `rank` are named as in sentence-transformers' CrossEncoder.

    Examples:
      >>> reranker = Reranker.from_pretrained("Alibaba-NLP/gte-multilingual-reranker-base")  # doctest: +SKIP
      >>> reranker.rank("what is the capital of China?", ["Beijing", "Paris"], top_k=1)  # doctest: +SKIP
    """

    def __init__(self, checkpoint: Checkpoint, **options: Any):
        checkpoint.check_scores(checkpoint.directory.root, "use Stella.from_pretrained or the command embed")
        super().__init__(checkpoint, **options)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        dtype: str | None = None,
        mesh: Mesh | str | None = None,
        revision: str | None = None,
        *,
        max_length: int | None = None,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        device: object = None,
    ) -> "Reranker":
        """Loads a checkpoint.

        Args:
          max_length: number of tokens at which a pair is cut; None is the checkpoint's limit.
          name_or_path, dtype, mesh, revision, cache_folder, local_files_only, token, trust_remote_code, device: as in
            `Stella.from_pretrained`.

        Raises:
          StellaError: the checkpoint or an argument is not valid or not supported.
        """
        hub = {"cache_folder": cache_folder, "local_files_only": local_files_only, "token": token}
        checkpoint, mesh = open_pretrained(name_or_path, revision, mesh, device, **hub)
        model = cls(checkpoint, dtype=dtype, mesh=mesh)
        if max_length is not None:
            model.max_length = max_length
        return model

    @property
    def activation(self) -> str:
        """The default activation of scores: "sigmoid", or "none" if the checkpoint says so."""
        activation = self.checkpoint.spec.score_activation
        assert activation
        return activation

    @property
    def max_length(self) -> int:
        """`max_seq_length`, by its older name in sentence-transformers."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        self.max_seq_length = value

    def predict(
        self,
        pairs: Sequence[Pair] | Pair,
        activation: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> Any:
        """Scores pairs of a query and a text: the higher the score, the better the text answers the query.

        The score of a pair does not depend on the other pairs, their number or their order.

        Args:
          pairs: (query, text), or a list of such pairs.
          activation: "sigmoid" for scores from 0 to 1, "none" for raw scores; None is the checkpoint's own.
          batch_size: maximum number of rows of a batch on a device; None is the best number for each length.
          show_progress_bar: whether to show a bar on stderr.

        Returns:
          [n] float32 in the order of the pairs, (0,) for an empty list, one number for a single pair.

        Raises:
          StellaError: a pair is not two str (the error says which), an argument is not valid, or the call is inside a
            function that JAX transforms.
        """
        activation = self.activation if activation is None else activation
        check_choice("activation", activation, SCORE_ACTIVATIONS)
        scores = activate(self._logits(pairs, batch_size, show_progress_bar), activation)
        return scores[()]

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        activation: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Ranks texts from the best to the worst answer to a query; equal ones keep their order.

        Args:
          top_k: how many to return; None returns all.
          return_documents: whether to return the texts as well.
          activation, batch_size, show_progress_bar: as in `predict`.

        Returns:
          A list of dicts with "corpus_id" (the index in `texts`) and "score", and with "text" if `return_documents`
          is set.

        Raises:
          StellaError: as in `predict`.
        """
        activation = self.activation if activation is None else activation
        check_choice("activation", activation, SCORE_ACTIVATIONS)
        if top_k is not None:
            check_whole("top_k", top_k, MAX_ROWS)
        query, texts = check_text(query, "query"), check_texts(texts, "texts", "a list of str")
        logits = self._logits([(query, text) for text in texts], batch_size, show_progress_bar)
        scores = activate(logits, activation)
        best = np.argsort(-logits, kind="stable")[:top_k].tolist()  # not by sigmoids, which are all 1 for high scores
        found = [{"corpus_id": i, "score": float(scores[i])} for i in best]
        return [each | {"text": texts[each["corpus_id"]]} for each in found] if return_documents else found

    def tokenize(self, texts: Sequence[Pair], prompt: str = "") -> list[Tokens]:
        """Token ids of each pair, cut at `max_seq_length`; there are no prompts."""
        return cast(PairTokenizer, self.tokenizer).encode_pairs(texts)

    def _logits(
        self, pairs: Sequence[Pair] | Pair, batch_size: int | None, show_progress_bar: bool | None
    ) -> np.ndarray:
        """Raw scores, [n] float32, or [] for a single pair."""
        check_whole("batch_size", 1 if batch_size is None else batch_size, MAX_ROWS)
        check_not_traced(self.mesh)
        checked, is_single = check_pairs(pairs)
        with tqdm(total=len(checked), unit="pair", disable=not show_progress_bar) as bar:
            tokens = self.tokenize(checked)
            found = self.run_tokens(tokens, 1 if is_single else batch_size, lambda batch: bar.update(len(batch.texts)))
        return found[0, 0] if is_single else found[:, 0]
