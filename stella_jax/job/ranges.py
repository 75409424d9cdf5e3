"""The ranges of each head for int8 and uint8: read from a file, and as JSON."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stella_jax.errors import StellaError, first_line, join_words
from stella_jax.quantization import Ranges
from stella_jax.storage.location import Location, locate, require_file

# The largest heads have 8192 dimensions, some 400 kB as JSON.
MAX_BYTES = 64 * 2**20


def read_ranges(path: str | Path, dims: Sequence[int]) -> dict[int, Ranges]:
    """The ranges of heads with these dimensions from a file: arrays of shape (2, dim), minima and maxima.

    Args:
      path: a path or URL: .npy; .npz with one array, or one per dimension, named by it ("256"); .json with nested
        lists, or an object of these by dimension, as in job.json and the manifest.

    Raises:
      StellaError: the file is missing or damaged, or the ranges of a head are missing, invalid (see `Ranges`), or have
        the wrong shape.
    """
    location = locate(path)
    found = _read(location)
    if not isinstance(found, dict):
        if len(dims) > 1:
            raise StellaError(
                f"{location}: one array for {len(dims)} heads; name one by each dimension: {join_words(dims)}."
            )
        found = {str(dims[0]): found}
    return {dim: _ranges(location, found, dim) for dim in dims}


def ranges_to_json(ranges: Mapping[int, Ranges]) -> dict[str, list[list[float]]]:
    """Minima and maxima by dimension; `ranges_from_json` restores the same float32 numbers."""
    return {str(dim): [each.minimum.tolist(), each.maximum.tolist()] for dim, each in ranges.items()}


def ranges_from_json(fields: Mapping[str, Any]) -> dict[int, Ranges]:
    """The inverse of `ranges_to_json`."""
    return {int(dim): Ranges(*(np.array(row, np.float32) for row in rows)) for dim, rows in fields.items()}


def _ranges(location: Location, found: Mapping[str, Any], dim: int) -> Ranges:
    if str(dim) not in found:
        raise StellaError(f"{location}: no ranges for dimension {dim}; it has {join_words(found)}.")
    try:
        rows = np.asarray(found[str(dim)])
    except ValueError:  # lists of unequal lengths
        rows = np.empty(0, object)
    if rows.shape != (2, dim) or rows.dtype.kind not in "fiu":
        shown = f"{rows.dtype} {rows.shape}" if rows.dtype != object else "not a table of numbers"
        raise StellaError(f"{location}: ranges are {shown}; expected numbers of shape (2, {dim}), minima and maxima.")
    try:
        return Ranges(rows[0], rows[1])
    except StellaError as error:
        raise StellaError(f"{location}: {error}") from None


def _read(location: Location) -> Any:
    """An array or nested lists, or several of them by name."""
    require_file(location)
    suffix = Path(location.name).suffix.lower()
    if suffix not in (".npy", ".npz", ".json"):
        raise StellaError(f"{location}: unsupported file type; supported: .npy, .npz, .json.")
    if not 0 < location.size() <= MAX_BYTES:
        raise StellaError(f"{location}: {location.size()} bytes, not a file with an array of shape (2, dim).")
    with location.open() as file:
        content = file.read(MAX_BYTES)
    try:
        return json.loads(content) if suffix == ".json" else _arrays(content)
    except (ValueError, EOFError, OSError, RecursionError, zipfile.BadZipFile) as error:
        raise StellaError(f"{location}: damaged {suffix} file ({first_line(error)}); write it again.") from error


def _arrays(content: bytes) -> Any:
    if (
        content[:2] == b"PK"
        and sum(file.file_size for file in zipfile.ZipFile(io.BytesIO(content)).infolist()) > MAX_BYTES
    ):
        raise ValueError("too large when decompressed")
    found = np.load(io.BytesIO(content), allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    arrays = {name: found[name] for name in found.files}
    return next(iter(arrays.values())) if len(arrays) == 1 and not next(iter(arrays)).isdecimal() else arrays
