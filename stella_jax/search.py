"""Exact search over the parts of a finished job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.embedder import Stella
from stella_jax.errors import StellaError, first_line, join_words
from stella_jax.job.commits import part_name
from stella_jax.job.manifest import read_manifest
from stella_jax.job.model import load_model
from stella_jax.job.part_rows import texts_of
from stella_jax.job.store import Store, open_store
from stella_jax.job.write import column_of

# Numbers of a block of embeddings in memory: 32 MiB.
BLOCK = 2**23


@dataclass(frozen=True, slots=True)
class Hit:
    """A row near the query; `part` is the number of the part that it stands in."""

    score: float
    id: str
    part: int


class Index:
    """A finished job with the model that made it.

    Only complete jobs are opened: the best of a part of a corpus look just like the best of it all, and completing the
    job is one command.
    """

    def __init__(self, store: Store, model: Stella, manifest: dict[str, Any]):
        self._store = store
        self._manifest = manifest
        self.model = model

    @classmethod
    def open(
        cls, out: str | Path, model_name: str | None = None, revision: str | None = None, dim: int | None = None
    ) -> "Index":
        """Reads the manifest and loads the model that it names, or the same one from elsewhere.

        Args:
          dim: which of the job's heads; None is the first.

        Raises:
          StellaError: the job is not complete, has no such embeddings, or the model is not the one that embedded it.
        """
        store = open_store(out)
        manifest = read_manifest(store)
        dims: list[int] = manifest["dims"]
        if dim is not None and dim not in dims:
            raise StellaError(f"{store} holds embeddings of {join_words(dims)} numbers, none of {dim}.")
        return cls(store, load_model(store, manifest, [dim or dims[0]], model_name, revision), manifest)

    def search(self, query: str, k: int, prompt: str | None = None) -> list[Hit]:
        """The k rows nearest to a query, nearest first and among equals in the corpus's order.

        Args:
          prompt: put before the query; None is the one that the checkpoint has for queries.

        Raises:
          StellaError: a part is missing or damaged; says which.
        """
        vector = self.model.encode_query(query, prompt=prompt, normalize_embeddings=self._manifest["normalize"])
        best: list[Hit] = []
        for part in range(len(self._manifest["parts"])):
            for ids, embeddings in self._blocks(part):
                # Row by row: of equal rows a product of matrices may round one otherwise than the other.
                scores = self.model.similarity_pairwise(np.broadcast_to(vector, embeddings.shape), embeddings)
                nearest = np.argsort(-scores, kind="stable")[:k]
                best += [Hit(float(scores[i]), ids[int(i)].as_py(), part) for i in nearest]
                best = sorted(best, key=lambda hit: -hit.score)[:k]
        return best

    def texts(self, hits: Sequence[Hit]) -> dict[str, str]:
        """Texts of the hits by id, as far as the job's inputs are still there; reads the hits' parts of them only."""
        files = [self._manifest["parts"][number]["file"] for number in sorted({hit.part for hit in hits})]
        names = [part_name(file.removesuffix(".parquet")) for file in files]
        return texts_of(self._store, names, {hit.id for hit in hits})

    def _blocks(self, part: int) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """A part's ids and embeddings [rows, dim], a block at a time."""
        if not self._manifest["parts"][part]["rows"]:
            return
        path = f"{self._store}/{self._manifest['parts'][part]['file']}"
        dim, column = self.model.dim, column_of(self.model.dim, self._manifest["dims"])
        try:
            with (
                self._store.open(self._manifest["parts"][part]["file"]) as source,
                pq.ParquetFile(source, page_checksum_verification=True) as file,
            ):
                if file.schema_arrow.field(column).type != pa.list_(pa.float32(), dim):
                    raise StellaError(f"{path} does not hold embeddings of {dim} numbers; it is another job's file.")
                for batch in file.iter_batches(max(1, BLOCK // dim), columns=["id", column]):
                    yield batch.column("id"), batch.column(column).flatten().to_numpy().reshape(-1, dim)
        except FileNotFoundError:
            raise StellaError(f"{path} is missing; run the embed command again to make it anew.") from None
        except PermissionError:
            raise
        except (pa.ArrowException, OSError, KeyError) as error:
            raise StellaError(
                f"{path} is damaged ({first_line(error)}); remove it and run the embed command again."
            ) from error
