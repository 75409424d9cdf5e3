"""Training datasets from rows in memory."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from train.data import Dataset, row_bytes, text_names, with_columns_hashed
from train.texts import Texts


def dataset_of(
    rows: Sequence[tuple[str, ...]],
    source: str,
    columns: Mapping[str, np.ndarray] | None = None,
    name: str = "",
) -> Dataset:
    """Rows of texts, in the order of `text_names`, and columns of numbers."""
    names, values = text_names(len(rows[0])), zip(*rows, strict=True)
    texts = {
        name: Texts(pa.chunked_array([pa.array(column, pa.large_string())]))
        for name, column in zip(names, values, strict=True)
    }
    sha256 = hashlib.sha256(b"".join(map(row_bytes, rows)))
    columns = dict(columns or {})
    return Dataset(texts, columns, source, with_columns_hashed(sha256, columns), name=name)
