"""sha256 of files and arrays."""

import hashlib
from pathlib import Path

import numpy as np

from stella_jax.checkpoint.directory import Directory


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_array(array: np.ndarray) -> str:
    """Hash of the numbers in C order, little-endian as stored."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def hashed(directory: Directory, names: list[str]) -> dict[str, dict[str, object]]:
    """Size and hash of each file."""
    paths = {name: directory.path(name) for name in names}
    return {name: {"size": path.stat().st_size, "sha256": sha256_of_file(path)} for name, path in paths.items()}
