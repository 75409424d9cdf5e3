"""Exact search over the parts of finished jobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from stella_jax.embedder import Stella
from stella_jax.errors import StellaError, join_words
from stella_jax.job.commits import part_name
from stella_jax.job.manifest import read_manifest
from stella_jax.job.model import check_model, load_model
from stella_jax.job.part_rows import texts_of
from stella_jax.job.vectors import check_embeddings, precision_of, read_vectors
from stella_jax.storage.store import Store, open_store


@dataclass(frozen=True, slots=True)
class Hit:
    """A row near the query; it stands in the part of this number of the job in `directory`."""

    score: float
    id: str
    directory: str
    part: int


class Index:
    """Finished jobs with the model that made them.

    Only complete jobs are opened: the best of a part of a corpus look just like the best of it all, and completing the
    job is one command.
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
        """Reads the manifests and loads the model that the first one names, or the same one from elsewhere.

        Args:
          directories: of one job, or several by one model, at one precision.
          dim: which of the jobs' heads; None is the first of the first.

        Raises:
          StellaError: a job is not complete, has no such embeddings, or does not go with the others, or the model is
            not the one that embedded it.
        """
        directories = [directories] if isinstance(directories, str | Path) else directories
        stores = [open_store(directory) for directory in directories]
        jobs = [(store, read_manifest(store)) for store in stores]
        for store, manifest in jobs:
            check_embeddings(store, manifest)
        dim = int(jobs[0][1]["dims"][0] if dim is None else dim)
        for store, manifest in jobs:
            if dim not in manifest["dims"]:
                held = join_words(manifest["dims"])
                raise StellaError(f"{store} holds embeddings of {held} numbers, none of {dim}.")
            _check_together(jobs[0], (store, manifest))
        model = cast(Stella, load_model(*jobs[0], [dim], model_name, revision))
        for store, manifest in jobs[1:]:
            check_model(store, manifest, model, f"The model of {stores[0]}")
        return cls(jobs, model)

    def search(self, query: str, k: int, prompt: str | None = None) -> list[Hit]:
        """The k rows nearest to a query, nearest first and among equals in the corpus's order.

        The query stays float32. Quantized rows are scored as what they stand for: int8 and uint8 by their levels'
        places in the ranges, as sentence-transformers rescores them; binary and ubinary as vectors of 1 and -1, which
        ranks by any of cosine, dot and euclidean as its product of the query with the bits does.

        Args:
          prompt: put before the query; None is the one that the checkpoint has for queries.

        Raises:
          StellaError: the query is empty; or a part is missing or damaged, and it says which.
        """
        if not query.strip():
            raise StellaError("the query is empty; pass a text to search for.")
        normalize = next(iter(self._jobs.values()))[1]["normalize"]
        vector = self.model.encode_query(query, prompt=prompt, normalize_embeddings=normalize)
        best: list[Hit] = []
        for directory, (store, manifest) in self._jobs.items():
            for part in range(len(manifest["parts"])):
                for ids, vectors in read_vectors(store, manifest, part, self.model.dim):
                    # Row by row: of equal rows a product of matrices may round one otherwise than the other.
                    scores = self.model.similarity_pairwise(np.broadcast_to(vector, vectors.shape), vectors)
                    nearest = np.argsort(-scores, kind="stable")[:k]
                    best += [Hit(float(scores[i]), ids[int(i)].as_py(), directory, part) for i in nearest]
                    best = sorted(best, key=lambda hit: -hit.score)[:k]
        return best

    def texts(self, hits: Sequence[Hit]) -> dict[Hit, str]:
        """Texts of the hits, as far as the jobs' inputs are still there; reads the hits' parts of them only."""
        found: dict[Hit, str] = {}
        for directory, (store, manifest) in self._jobs.items():
            here = [hit for hit in hits if hit.directory == directory]
            files = sorted({manifest["parts"][hit.part]["file"] for hit in here})
            names = [part_name(file.removesuffix(".parquet")) for file in files]
            texts = texts_of(store, names, {hit.id for hit in here})
            found |= {hit: texts[hit.id] for hit in here if hit.id in texts}
        return found


def _check_together(first: tuple[Store, dict[str, Any]], other: tuple[Store, dict[str, Any]]) -> None:
    """Raises StellaError where scores of two jobs do not compare."""
    for name, read in (("precision", precision_of), ("normalize", lambda manifest: manifest["normalize"])):
        one, two = read(first[1]), read(other[1])
        if one != two:
            raise StellaError(f"{other[0]}: {name} is {two}, and {one} in {first[0]}; search them one by one.")
