"""Exact search in finished jobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from stella_jax.arguments import MAX_ROWS, check_whole
from stella_jax.embedder import Stella
from stella_jax.errors import StellaError, join_words
from stella_jax.job.commits import PartName
from stella_jax.job.manifest import read_manifest
from stella_jax.job.model import check_model, load_model
from stella_jax.job.source_rows import texts_by_id
from stella_jax.job.vectors import check_embeddings, precision_of, read_vectors
from stella_jax.storage.store import Store, open_store


@dataclass(frozen=True, slots=True)
class Hit:
    """A row near the query, in part number `part` of the job in `directory`."""

    score: float
    id: str
    directory: str
    part: int


class Index:
    """Finished jobs with the model that embedded them.

    Only complete jobs are opened, since the best rows of a part of a corpus look just like the best rows of all, and
    finishing the job takes one command.
    """

    def __init__(self, jobs: Sequence[tuple[Store, dict[str, Any]]], model: Stella):
        self._jobs = {str(store): (store, manifest) for store, manifest in jobs}
        self.model = model

    @classmethod
    def open(
        cls,
        directories: str | Path | Sequence[str | Path],
        model_name: str | None = None,
        revision: str | None = None,
        dim: int | None = None,
    ) -> "Index":
        """Reads the manifests, and loads the model that the first one names, or the same model from elsewhere.

        Args:
          directories: of one job, or of several jobs with the same model and precision.
          dim: which head of the jobs; None is the first head of the first job.

        Raises:
          StellaError: a job is not complete, has no such embeddings, or does not fit the others, or the model is not
            the one that embedded it.
        """
        directories = [directories] if isinstance(directories, str | Path) else directories
        if not directories:
            raise StellaError("directories: empty; pass the directory of at least one job.")
        stores = [open_store(directory) for directory in directories]
        jobs = [(store, read_manifest(store)) for store in stores]
        for store, manifest in jobs:
            check_embeddings(store, manifest)
        dim = int(jobs[0][1]["dims"][0] if dim is None else dim)
        for store, manifest in jobs:
            if dim not in manifest["dims"]:
                held = join_words(manifest["dims"])
                raise StellaError(f"{store}: no embeddings of dimension {dim}; it has {held}.")
            _check_together(jobs[0], (store, manifest))
        model = cast(Stella, load_model(*jobs[0], [dim], model_name, revision))
        for store, manifest in jobs[1:]:
            check_model(store, manifest, model, f"The model of {stores[0]}")
        return cls(jobs, model)

    def search(self, query: str, k: int, prompt: str | None = None) -> list[Hit]:
        """The k rows nearest to a query, the nearest first; equal ones in the order of the corpus.

        The query is cut at the model's own `max_seq_length`, even if the job's texts were cut earlier, and stays
        float32. Quantized rows are dequantized for scoring: int8 and uint8 by the ranges, like sentence-transformers'
        rescoring; binary and ubinary to 1 and -1, which gives the same order by cosine, dot and euclidean as the
        product of the query with the bits.

        Args:
          prompt: text to put before the query; None is the checkpoint's prompt for queries.

        Raises:
          StellaError: the query is empty, k is not a positive whole number, or a part is missing or damaged (the error
            says which).
        """
        if not query.strip():
            raise StellaError("query: empty; pass a text to search for.")
        check_whole("k", k, MAX_ROWS)
        normalize = next(iter(self._jobs.values()))[1]["normalize"]
        vector = self.model.encode_query(query, prompt=prompt, normalize_embeddings=normalize)
        best: list[Hit] = []
        for directory, (store, manifest) in self._jobs.items():
            for part in range(len(manifest["parts"])):
                for ids, vectors in read_vectors(store, manifest, part, self.model.dim):
                    # Row by row: a matrix product may round equal rows differently.
                    scores = self.model.similarity_pairwise(np.broadcast_to(vector, vectors.shape), vectors)
                    nearest = np.argsort(-scores, kind="stable")[:k]
                    best += [Hit(float(scores[i]), ids[int(i)].as_py(), directory, part) for i in nearest]
                    best = sorted(best, key=lambda hit: -hit.score)[:k]
        return best

    def texts(self, hits: Sequence[Hit]) -> dict[Hit, str]:
        """Texts of the hits, if the jobs' inputs are still there; reads only the parts of the inputs that have hits."""
        found: dict[Hit, str] = {}
        for directory, (store, manifest) in self._jobs.items():
            here = [hit for hit in hits if hit.directory == directory]
            files = sorted({manifest["parts"][hit.part]["file"] for hit in here})
            names = [PartName.parse(file) for file in files]
            texts = texts_by_id(store, names, {hit.id for hit in here})
            found |= {hit: texts[hit.id] for hit in here if hit.id in texts}
        return found


def _check_together(first: tuple[Store, dict[str, Any]], other: tuple[Store, dict[str, Any]]) -> None:
    """Raises StellaError if scores of the two jobs are not comparable."""
    for name, read in (("precision", precision_of), ("normalize", lambda manifest: manifest["normalize"])):
        one, two = read(first[1]), read(other[1])
        if one != two:
            raise StellaError(f"{other[0]}: {name} is {two}, but {one} in {first[0]}; search them separately.")
