"""sha256 of files and arrays."""

import hashlib
from pathlib import Path

import numpy as np

from stella_jax.checkpoint.directory import Directory
from stella_jax.memory import copy


def sha256_of_file(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_array(array: np.ndarray) -> str:
    """Hash of the numbers in C order, little-endian as stored, in hexadecimal."""
    if not array.flags.c_contiguous:
        ordered = np.empty(array.shape, array.dtype)
        copy(array, ordered)
        array = ordered
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def hashed(directory: Directory, names: list[str]) -> dict[str, dict[str, object]]:
    """Size and hash of each file."""
    paths = {name: directory.path(name) for name in names}
    return {name: {"size": path.stat().st_size, "sha256": sha256_of_file(path)} for name, path in paths.items()}
