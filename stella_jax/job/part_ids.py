"""Hashes of a part's ids and the positions of its rows, in a file of their own, to find repeated ids at the end."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stella_jax.job.commits import PartName
from stella_jax.readers.split_reader import PositionedRow
from stella_jax.storage.store import Store

HASH_BYTES = 16  # two of 1e9 ids collide with a probability of 1e-21


@dataclass(frozen=True, slots=True)
class PartIds:
    """The n rows of a part before repeats were removed.

    Attributes:
      high, low: (n,) uint64, the two halves of the hash of each id.
      inputs, numbers: (n,) int, the input of each row and its number in it.
    """

    high: np.ndarray
    low: np.ndarray
    inputs: np.ndarray
    numbers: np.ndarray


def hash_id(row_id: str) -> bytes:
    """16 bytes."""
    return hashlib.blake2b(row_id.encode(), digest_size=HASH_BYTES).digest()


def hash_halves(hashes: bytes | memoryview) -> tuple[np.ndarray, np.ndarray]:
    """The halves (high, low) of n joined hashes of ids, (n,) uint64 each, as `RepeatedIds.add` takes them."""
    halves = np.frombuffer(hashes, "<u8").reshape(-1, 2)
    return halves[:, 0], halves[:, 1]


def write_ids(store: Store, name: PartName, rows: Sequence[PositionedRow]) -> str:
    """Writes the ids of a part; returns the sha256 of the file."""
    hashes = b"".join(hash_id(row.row.id or "") for row in rows)
    columns = {
        "hash": pa.FixedSizeBinaryArray.from_buffers(pa.binary(HASH_BYTES), len(rows), [None, pa.py_buffer(hashes)]),
        "input": pa.array([row.input for row in rows], pa.int32()),
        "number": pa.array([row.row.number for row in rows], pa.int64()),
    }
    encodings = {"hash": "PLAIN", "input": "DELTA_BINARY_PACKED", "number": "DELTA_BINARY_PACKED"}
    with store.replacing(name.ids_file) as file:
        pq.write_table(
            pa.table(columns),
            file,
            compression="none",
            use_dictionary=False,
            column_encoding=encodings,
            write_page_checksum=True,
        )
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_ids(store: Store, name: PartName) -> PartIds:
    """The ids of a part; raises FileNotFoundError or pyarrow's errors if the file is missing or damaged."""
    with store.open(name.ids_file) as file:
        table = pq.read_table(file, page_checksum_verification=True)
    hashes = table["hash"].combine_chunks()
    stored = memoryview(hashes.buffers()[1])[HASH_BYTES * hashes.offset :][: HASH_BYTES * len(hashes)]
    return PartIds(*hash_halves(stored), table["input"].to_numpy(), table["number"].to_numpy())
