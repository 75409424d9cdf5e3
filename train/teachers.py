"""Teacher vectors from the outputs of embedding jobs, joined to rows by id."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stella_jax.errors import StellaError, join_words, short_repr
from stella_jax.job.manifest import read_manifest
from stella_jax.job.vectors import check_embeddings, read_vectors
from stella_jax.similarity import unit
from stella_jax.storage.store import Store, open_store
from train.data import Dataset, with_column
from train.texts import Texts

COLUMN = "teacher"
BLOCK = 2**22  # numbers that are normalized at once


def with_teachers(dataset: Dataset, directories: Sequence[str]) -> Dataset:
    """Adds a column `teacher` (rows, n) float32 to a dataset: the concatenated vectors of all teachers.

    Each teacher's vector is normalized, and so is the whole, as in Zhang et al. 2024 (arXiv:2412.19048). A job with
    several dimensions gives its first; quantized vectors are dequantized, as in `search`.

    Args:
      dataset: rows with ids.
      directories: outputs of finished embedding jobs, one for each teacher.

    Raises:
      StellaError: the rows have no ids; or a job is not complete, is damaged or lacks a row's vector.
    """
    if dataset.ids is None:
        raise StellaError(f"{dataset.source}: no column 'id', which teachers' vectors are joined by; add it.")
    jobs = [(store, read_manifest(store)) for store in map(open_store, directories)]
    for store, manifest in jobs:
        check_embeddings(store, manifest)
    dims = [int(manifest["dims"][0]) for _, manifest in jobs]
    vectors = np.empty((len(dataset), sum(dims)), np.float32)  # the only copy of all vectors in memory
    for (store, manifest), start, dim in zip(jobs, np.cumsum([0, *dims]), dims, strict=False):
        _fill(vectors[:, start : start + dim], dataset.ids, dataset.source, store, manifest)
    for rows in np.array_split(vectors, -(-vectors.size // BLOCK)):
        rows[:] = unit(rows)
    return with_column(dataset, COLUMN, vectors)


def _fill(vectors: np.ndarray, ids: Texts, source: str, store: Store, manifest: dict[str, Any]) -> None:
    """Writes the teacher's vector of each row."""
    found = np.zeros(len(ids), bool)
    for block_ids, block in _blocks(store, manifest, vectors.shape[1]):
        lookup = pc.SetLookupOptions(block_ids.cast(pa.large_string()))
        places = pc.call_function("index_in", [ids.array], lookup).fill_null(-1).to_numpy()
        rows = np.flatnonzero(places >= 0)
        vectors[rows] = unit(block)[places[rows]]
        found[rows] = True
    missing = np.flatnonzero(~found)
    if len(missing):
        raise StellaError(
            f"{store}: no vector for {len(missing)} of the {len(ids)} rows of {source}, first id "
            f"{short_repr(ids[missing[0]])}; embed their file into the same directory, with --id-field."
        )


def _blocks(store: Store, manifest: dict[str, Any], dim: int) -> Iterator[tuple[pa.StringArray, np.ndarray]]:
    for part in range(len(manifest["parts"])):
        yield from read_vectors(store, manifest, part, dim)


def check_dimensions(datasets: Sequence[Dataset]) -> None:
    """Refuses sets whose teacher vectors differ in dimension.

    Raises:
      StellaError: names the sets.
    """
    dims = {data.source: data.columns[COLUMN].shape[1:] for data in datasets if COLUMN in data.columns}
    if len(set(dims.values())) > 1:
        found = join_words(f"{shape[0] if shape else 1} in {source}" for source, shape in dims.items())
        raise StellaError(f"data.teachers: vectors differ in dimension: {found}; use the same teachers for all sets.")
