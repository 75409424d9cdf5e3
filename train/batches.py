"""The texts of a batch -> arrays of a few fixed shapes.

Every batch has the same rows: short ones are filled with rows of weight 0, which no loss counts. Each column is as long
as its longest text asks for, rounded up to one of a few lengths, so that few shapes are compiled.

Axes: B rows, T tokens.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from stella_jax.errors import StellaError
from stella_jax.tokenizer import Tokenizer

# NumPy's on the host, JAX's on devices.
Array = Any

# Columns get one length where that adds at most this to their tokens: one shape instead of many, one pass of the
# encoder instead of several, and one gradient in memory.
ONE_LENGTH = 1.25

# Coarser than those of inference, as a shape takes many times longer to compile.
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


class Batch(NamedTuple):
    """Columns of texts, row by row.

    Attributes:
      ids: (B, T) int32 of each column, padded on the right; T is each column's own.
      lengths: (B,) int32 of each column, at least 1.
      weights: (B,) float32, 1 for a row of texts and 0 for padding.
    """

    ids: tuple[Array, ...]
    lengths: tuple[Array, ...]
    weights: Array

    @property
    def tokens(self) -> int:
        """Tokens of texts, padding not counted."""
        real = np.asarray(self.weights) > 0
        return int(sum(np.asarray(lengths)[real].sum() for lengths in self.lengths))


def rows_of(batch_size: int, devices: int = 1, accumulation: int = 1) -> int:
    """Rows of a batch: `batch_size`, rounded up to what devices and accumulation steps divide."""
    return -(-batch_size // (devices * accumulation)) * devices * accumulation


@dataclass(frozen=True, slots=True)
class Batcher:
    """Makes batches of `rows` rows.

    Attributes:
      prompts: what is put before the texts of each column.
      pad_id: the token id of padding.
    """

    tokenizer: Tokenizer
    rows: int
    pad_id: int
    prompts: tuple[str, ...] = ("", "", "")

    def __call__(self, columns: Sequence[Sequence[str]]) -> Batch:
        """A batch of columns of texts (anchors, positives, and negatives if there are any), equally many in each.

        Raises:
          StellaError: there are none, or more than a batch has rows.
        """
        count = len(columns[0])
        if not 1 <= count <= self.rows:
            raise StellaError(f"a batch of {self.rows} rows cannot hold {count}; lower loop.batch_size.")
        prompted = zip(columns, self.prompts, strict=False)
        tokens = [[text.ids for text in self.tokenizer.encode(texts, prompt)] for texts, prompt in prompted]
        padded = map(self._pad, tokens, column_lengths([max(map(len, column)) for column in tokens]))
        ids, lengths = zip(*padded, strict=True)
        return Batch(ids, lengths, (np.arange(self.rows) < count).astype(np.float32))

    def _pad(self, tokens: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids (B, T) and lengths (B,); rows without a text are one padding token long."""
        ids = np.full((self.rows, length), self.pad_id, np.int32)
        lengths = np.ones(self.rows, np.int32)
        lengths[: len(tokens)] = [len(row) for row in tokens]
        filled = np.arange(ids.shape[1]) < lengths[:, None]
        filled[len(tokens) :] = False
        ids[filled] = list(chain.from_iterable(tokens))
        return ids, lengths


def column_lengths(longest: Sequence[int]) -> list[int]:
    """The fixed length of each column whose longest text has so many tokens."""
    lengths = [length_of(tokens) for tokens in longest]
    together = max(lengths) * len(lengths)
    return [max(lengths)] * len(lengths) if together <= ONE_LENGTH * sum(lengths) else lengths


def length_of(tokens: int) -> int:
    """The fixed length that holds so many tokens."""
    if tokens > LENGTHS[-1]:
        return -(-tokens // LENGTHS[-1]) * LENGTHS[-1]
    return LENGTHS[bisect_left(LENGTHS, tokens)]
