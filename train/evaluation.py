"""Evaluation of parameters during training: the loss, scores of a split's rows, and the recipe's evaluators."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from stella_jax.embedding_model import EmbeddingModel
from stella_jax.errors import StellaError, join_words
from stella_jax.runner import Runner
from stella_jax.tokenizer.tokenizer import Tokenizer
from train.data import ANY_ROWS, Dataset, Needs
from train.embedding_scores import Scores, retrieval, triplet_accuracy
from train.guide import COLUMN as GUIDE
from train.hosts import Hosts
from train.losses import Loss
from train.recipe_evaluators import Evaluator
from train.step import Params

# The scores that evaluations are compared by: with negatives, and without.
PRIMARY = ("cosine_accuracy", "cosine_mrr@10")


class Named(NamedTuple):
    """An evaluator, its name, and the prompts of its queries and documents."""

    name: str
    evaluator: Evaluator
    prompts: Mapping[str, str]


class Evaluation:
    """Evaluates parameters on a split.

    Args:
      model: the model that is trained; only its structure is kept.
      tokenizer, pad_id: the checkpoint's.
      mesh: this process's devices; processes share the texts.
      prompts: column -> its prompt.
      loss: computed on batches of `batch_size` rows, as in training; the last may be smaller.
      needs: the columns that the loss reads; a split that lacks one has no loss.
      guide: a frozen model whose embeddings the loss reads.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        tokenizer: Tokenizer,
        pad_id: int,
        mesh: Mesh,
        prompts: Mapping[str, str],
        loss: Loss,
        batch_size: int,
        needs: Needs = ANY_ROWS,
        guide: EmbeddingModel | None = None,
    ):
        self._needs = needs
        self._model, self._guide = nnx.eval_shape(lambda: model), guide
        self._tokenizer, self._pad_id, self._mesh = tokenizer, pad_id, mesh
        self._prompts = prompts
        self._batch_size = batch_size
        self._hosts = Hosts()
        self._loss_of_batch = jax.jit(loss)

    def __call__(self, params: Params, dataset: Dataset, tick: Callable[[], object] = lambda: None) -> Scores:
        """Evaluates parameters on a dataset.

        Args:
          tick: called after each batch of texts.

        Returns:
          `loss`, without dropout; with negatives, the scores of `triplet_accuracy` for the column `negative`; with
          positives, the scores of `retrieval` of each anchor's positives among all positives of the split.
        """
        embedded = self._embed(self._model, params, dataset, tick)
        scores = {}
        if self._needs.are_met_by(dataset):
            most, columns = self._needs.texts[1], dataset.columns
            if self._guide:
                guided = self._embed(self._guide, self._guide.params(), dataset, tick)
                columns = columns | {GUIDE: np.stack([*guided.values()][:most], axis=1)}
            scores["loss"] = self._loss(tuple(embedded.values())[:most], columns)
        if "negative" in embedded:
            scores |= triplet_accuracy(embedded["anchor"], embedded["positive"], embedded["negative"])
        return scores | (_retrieval(dataset, embedded) if "positive" in embedded else {})

    def named(self, params: Params, evaluators: Sequence[Named], tick: Callable[[], object] = lambda: None) -> Scores:
        """Runs evaluators; returns their scores as `name/score`."""
        runner = self._runner(self._model, params)

        def embed(prompts: Mapping[str, str], texts: Sequence[str], kind: str) -> np.ndarray:
            return self._embed_texts(runner, prompts.get(kind, ""), texts, tick)

        found = {name: evaluator(partial(embed, prompts)) for name, evaluator, prompts in evaluators}
        return {f"{name}/{score}": value for name, scores in found.items() for score, value in scores.items()}

    def _embed(
        self, model: EmbeddingModel, params: Params, dataset: Dataset, tick: Callable[[], object]
    ) -> dict[str, np.ndarray]:
        """Embeddings (rows, dim) of each column, by a model with these parameters."""
        runner = self._runner(model, params)
        return {
            name: self._embed_texts(runner, self._prompts.get(name, ""), texts, tick)
            for name, texts in dataset.texts.items()
        }

    def _runner(self, model: EmbeddingModel, params: Params) -> Runner:
        # Gather parameters that are sharded over processes.
        model = model.with_params({name: self._hosts.fetch(leaf) for name, leaf in params.items()})
        return Runner(model, self._mesh, self._pad_id, layer_by_layer=False)

    def _embed_texts(self, runner: Runner, prompt: str, texts: Sequence[str], tick: Callable[[], object]) -> np.ndarray:
        """Embeddings (rows, dim); repeated texts are embedded once."""
        places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        own = list(places)[self._hosts.index :: self._hosts.count]
        tokens = self._tokenizer.encode(own, prompt)
        [(_, (found,))] = runner.stream([tokens], self._tokenizer.max_length, on_batch=lambda _: tick())
        return self._hosts.all_gather(found, len(places))[[places[text] for text in texts]]

    def _loss(self, embedded: tuple[np.ndarray, ...], columns: Mapping[str, np.ndarray]) -> float:
        """The mean loss over rows, computed batch by batch."""
        count, total = len(embedded[0]), 0.0
        for start in range(0, count, self._batch_size):
            rows = slice(start, min(count, start + self._batch_size))
            further = {name: values[rows] for name, values in columns.items()}
            further["weights"] = np.ones(rows.stop - rows.start, np.float32)
            total += float(jnp.sum(self._loss_of_batch(tuple(column[rows] for column in embedded), further)))
        return total / count


def combined(scores: Mapping[str, Scores]) -> Scores:
    """Scores of several sets: the mean of each score that all sets have, then each set's own as `name/score`."""
    if len(scores) == 1:
        return next(iter(scores.values()))
    first, *others = scores.values()
    shared = [score for score in first if all(score in other for other in others)]
    means = {score: fmean(each[score] for each in scores.values()) for score in shared}
    return means | {f"{name}/{score}": value for name, each in scores.items() for score, value in each.items()}


def primary_name(scores: Mapping[str, object], best: str | None = None) -> str:
    """The name of the score that evaluations are compared by: `best`, else the first of `PRIMARY` that exists.

    Raises:
      StellaError: there is no score `best`.
    """
    if best and best not in scores:
        raise StellaError(f"loop.best: unknown score {best!r}; choose one of {join_words(scores)}.")
    return best or next((name for name in PRIMARY if name in scores), next(iter(scores)))


def primary(scores: Mapping[str, float | None], best: str | None = None) -> float:
    """The value of the primary score, negated for a loss so that higher is better; -inf for NaN or None."""
    name = primary_name(scores, best)
    value = scores[name]
    if value is None or math.isnan(value):
        return -math.inf
    return -value if name.rpartition("/")[2] == "loss" else value


def _retrieval(dataset: Dataset, embedded: dict[str, np.ndarray]) -> Scores:
    """Retrieval scores with distinct anchors as queries and distinct positives as corpus."""
    anchors, positives = dataset.texts["anchor"], dataset.texts["positive"]
    corpus, queries = _first_rows(positives), _first_rows(anchors)
    places = {text: place for place, text in enumerate(corpus)}
    relevant: dict[str, set[int]] = {anchor: set() for anchor in queries}
    for anchor, positive in zip(anchors, positives, strict=True):
        relevant[anchor].add(places[positive])
    rows = embedded["anchor"][list(queries.values())], embedded["positive"][list(corpus.values())]
    return retrieval(*rows, list(relevant.values()))


def _first_rows(texts: Sequence[str]) -> dict[str, int]:
    """Each distinct text -> the first row that has it."""
    rows: dict[str, int] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text, row)
    return rows
