"""Batches of texts as arrays of a few fixed shapes.

All batches have the same number of rows: short ones are padded with rows of weight 0. The texts of all columns together
are sorted by length and padded in groups (`train.length_groups`); `TrainBatch.places` says where each row's texts are.

Axes: A micro-batches of a batch, B rows of a micro-batch, C columns of texts, T tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stella_jax.checkpoint.checkpoint import Checkpoint
from stella_jax.embedding_model import EmbeddingModel, check_model
from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.tokenizer.tokenizer import Tokenizer
from train.length_groups import Shape, choose_shapes, fits

# NumPy's on the host, JAX's on devices.
Array = Any


class TrainBatch(NamedTuple):
    """Rows of texts, cut into A micro-batches of B rows each.

    Attributes:
      ids: token ids of each group of texts, (A, n, T) int32, padded on the right; n and T differ by group.
      lengths: tokens of each text of a group, (A, n) int32, at least 1.
      places: (A, B, C) int32, the index of each row's texts in the concatenation of all groups.
      weights: (A, B) float32, 1 for a row and 0 for padding.
      columns: further columns, (A, B) or (A, B, n) float32 each.
      tokens: number of tokens without padding; stays on the host.
    """

    ids: tuple[Array, ...]
    lengths: tuple[Array, ...]
    places: Array
    weights: Array
    columns: dict[str, Array]
    tokens: int


def padded_batch_size(batch_size: int, devices: int = 1, micro_batches: int = 1) -> int:
    """Rows of a batch: `batch_size`, rounded up to a multiple of devices * micro_batches."""
    multiple = devices * micro_batches
    return -(-batch_size // multiple) * multiple


class Batcher:
    """Makes batches from columns of texts.

    Without `fit`, all texts of a batch are padded to the length of the longest, rounded up to a power of two.

    Args:
      tokenizer: the model's.
      pad_id: token id of padding.
      batch_size: maximum number of rows.
      prompts: the prompt of each column, in order.
      devices: number of devices that share a batch.
      micro_batches: number of micro-batches that a batch is split into. One at a time passes the encoder; loss and
        gradient are those of the whole batch.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        pad_id: int,
        batch_size: int,
        *,
        prompts: Sequence[str] = (),
        devices: int = 1,
        micro_batches: int = 1,
    ):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise StellaError(f"batch_size: {short_repr(batch_size)} is not a whole number above 0; pass one.")
        if isinstance(prompts, str | Mapping):
            raise StellaError("prompts: not a list; pass a list with the prompt of each column.")
        self.rows = padded_batch_size(batch_size, devices, micro_batches)
        self._tokenizer, self._pad_id, self._prompts = tokenizer, pad_id, tuple(prompts)
        self._devices, self._micro_batches = devices, micro_batches
        self._shapes: dict[int, list[Shape]] = {}  # by the number of texts of a micro-batch

    @classmethod
    def for_model(
        cls, model: EmbeddingModel, batch_size: int, *, max_length: int | None = None, **options: Any
    ) -> "Batcher":
        """A batcher with the tokenizer of a loaded model; `options` are further arguments of the class.

        Args:
          max_length: number of tokens at which a text is cut; None is the checkpoint's.

        Raises:
          StellaError: the model was not loaded from a checkpoint, or `max_length` is more than the encoder supports.
        """
        check_model(model)
        if model.source is None:
            raise StellaError("model: not loaded from a checkpoint, so it has no tokenizer; pass one to Batcher.")
        checkpoint = Checkpoint.open(Path(model.source))
        return cls(checkpoint.tokenizer(max_length), checkpoint.spec.config.pad_token_id, batch_size, **options)

    def fit(self, batches: Iterable[Sequence[Sequence[str]]], all_seen: bool = False) -> "Batcher":
        """Chooses shapes that pad batches like these little; returns self.

        Args:
          batches: columns of texts each; batches with the same number of columns share shapes.
          all_seen: whether no other batches will come.
        """
        lengths: dict[int, list[np.ndarray]] = {}
        for batch in batches:
            for each in self._micro_batch_lengths(self._tokenize(batch)):
                lengths.setdefault(len(each), []).append(each)
        for size, found in lengths.items():
            multiple = self._devices if size % self._devices == 0 else 1
            self._shapes[size] = choose_shapes(np.stack(found), self._tokenizer.max_length, multiple, all_seen)
        return self

    def __call__(self, texts: Sequence[Sequence[str]], columns: Mapping[str, np.ndarray] | None = None) -> TrainBatch:
        """Makes a batch.

        Args:
          texts: columns of equally many texts: anchors, positives, and negatives if there are any.
          columns: further columns by name, (rows,) or (rows, n) numbers each, such as "score".

        Raises:
          StellaError: there are no rows, more rows than a batch has, or columns of different lengths; or a prompt
            leaves no room for a text.
        """
        count = self._check(texts, columns or {})
        tokens = self._tokenize(texts)
        micro_batches = [self._micro_batch(tokens, rows) for rows in self._cut(np.arange(self.rows))]
        shape = self._shape([lengths for _, lengths, _ in micro_batches])
        groups = [self._pad(ids, order, shape) for ids, _, order in micro_batches]
        filled = np.arange(self.rows) % count
        return TrainBatch(
            ids=tuple(np.stack(each) for each in zip(*(ids for ids, _ in groups), strict=True)),
            lengths=tuple(np.stack(each) for each in zip(*(lengths for _, lengths in groups), strict=True)),
            places=np.stack([_inverse(order).reshape(-1, len(texts)) for _, _, order in micro_batches]),
            weights=self._cut((np.arange(self.rows) < count).astype(np.float32)),
            columns={name: self._cut(np.asarray(values)[filled]) for name, values in (columns or {}).items()},
            tokens=sum(len(ids) for column in tokens for ids in column),
        )

    def _check(self, texts: Sequence[Sequence[str]], columns: Mapping[str, np.ndarray]) -> int:
        """The number of rows, all arguments checked."""
        kinds = [type(text).__name__ for column in texts for text in column if not isinstance(text, str)]
        if kinds or not texts or any(isinstance(column, str) for column in texts):
            what = kinds[0] if kinds else "a single str in place of a column" if texts else "no column"
            raise StellaError(f"texts: found {what}; pass a list of str for each column.")
        count, *others = map(len, texts)
        if any(other != count for other in others):
            raise StellaError(
                f"texts: columns have {join_words(map(len, texts))} texts; pass equally many in each column."
            )
        if not 1 <= count <= self.rows:
            raise StellaError(
                f"texts: {count} rows, but a batch has 1 to {self.rows}; change the rows or raise batch_size."
            )
        for name, values in columns.items():
            if len(values) != count or name == "weights":
                why = "the name is reserved" if name == "weights" else f"it has {len(values)} values for {count} rows"
                raise StellaError(f"columns: {short_repr(name)} cannot be used: {why}.")
        return count

    def _tokenize(self, texts: Sequence[Sequence[str]]) -> list[list[Sequence[int]]]:
        prompts = [*self._prompts, *[""] * len(texts)]
        return [
            [text.ids for text in self._tokenizer.encode(column, prompt)]
            for column, prompt in zip(texts, prompts, strict=False)
        ]

    def _cut(self, rows: np.ndarray) -> np.ndarray:
        """(rows, ...) -> (A, B, ...)."""
        return rows.reshape(self._micro_batches, -1, *rows.shape[1:])

    def _micro_batch_lengths(self, tokens: list[list[Sequence[int]]]) -> list[np.ndarray]:
        return [self._micro_batch(tokens, rows)[1] for rows in self._cut(np.arange(self.rows))]

    def _micro_batch(
        self, tokens: list[list[Sequence[int]]], rows: np.ndarray
    ) -> tuple[list[Sequence[int]], np.ndarray, np.ndarray]:
        """Token ids of a micro-batch row by row, their lengths in descending order, and that order.

        Padding rows repeat the texts of the first rows, so that their loss is finite.
        """
        count = len(tokens[0])
        ids = [column[row % count] for row in rows.tolist() for column in tokens]
        lengths = np.array([len(text) for text in ids])
        order = np.argsort(-lengths, kind="stable")
        return ids, lengths[order], order

    def _shape(self, lengths: Sequence[np.ndarray]) -> Shape:
        """The smallest shape that fits all micro-batches."""
        known = self._shapes.get(len(lengths[0]), [])
        fitting = (shape for shape in known if all(fits(shape, each) for each in lengths))
        longest = max(int(each[0]) for each in lengths)
        return next(fitting, ((len(lengths[0]), 1 << (longest - 1).bit_length()),))

    def _pad(
        self, ids: list[Sequence[int]], order: np.ndarray, shape: Shape
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids (n, T) and lengths (n,) of each group."""
        ordered, padded, lengths = [ids[i] for i in order.tolist()], [], []
        for texts, tokens in shape:
            group, ordered = ordered[:texts], ordered[texts:]
            lengths.append(np.array([len(text) for text in group], np.int32))
            padded.append(np.full((texts, tokens), self._pad_id, np.int32))
            padded[-1][np.arange(tokens) < lengths[-1][:, None]] = list(chain.from_iterable(group))
        return padded, lengths


def _inverse(order: np.ndarray) -> np.ndarray:
    places = np.empty(len(order), np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    return places
