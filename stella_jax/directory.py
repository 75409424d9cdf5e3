"""A checkpoint directory, read so that nothing in it can lead out of it."""

import json
import os
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError, short_repr

# Published side files are a few kilobytes; tokenizer.json, the largest, is not read through here. Parsed, a file can
# take thirty times its size.
LARGEST_JSON = 8 * 2**20

# Where sentence-transformers keeps prompts and the similarity.
SETTINGS = "config_sentence_transformers.json"


class Directory:
    """Read-only access to the files below `root`, by relative name."""

    def __init__(self, root: Path):
        if not root.is_dir():
            raise StellaError(f"{root} is not a directory; pass a checkpoint directory.")
        self.root = root
        self._boundary = _boundary(root.resolve())

    def path(self, name: str) -> Path:
        """The file of this relative name, whether or not it exists.

        Raises:
          StellaError: it is no name that a file can have, or it, or a link on the way, leads out of the directory.
        """
        path = self.root / name
        try:
            inside = path.resolve().is_relative_to(self._boundary)
            path.is_file()
        except (ValueError, OSError, RuntimeError) as error:  # NUL, too long, not readable, links in a circle
            why = error.strerror if isinstance(error, OSError) else error
            raise StellaError(f"{self.root}: {short_repr(name)} cannot be read as a file ({why}).") from error
        if not inside:
            raise StellaError(
                f"{short_repr(name)} leads out of {self.root}; every file of a checkpoint must lie inside it."
            )
        return path

    def has(self, name: str) -> bool:
        """Whether there is a file of this name.

        Raises:
          StellaError: something else stands in its place: a folder, a pipe, a device, or a link to what is not there.
        """
        path = self.path(name)
        if os.path.lexists(path) and not path.is_file():
            what = "a folder" if path.is_dir() else "a pipe or a device" if path.exists() else "a link to nothing"
            raise StellaError(f"{path}: {what}, not a file; download the file again, or remove what is there.")
        return path.is_file()

    def json(self, name: str) -> Any:
        """The parsed JSON file.

        Raises:
          StellaError: it is missing, absurdly large, or no JSON.
        """
        path = self.path(name)
        if not self.has(name):
            raise StellaError(f"{path} is missing.")
        if path.stat().st_size > LARGEST_JSON:
            raise StellaError(f"{path} is larger than {LARGEST_JSON} bytes, which no such file of a checkpoint is.")
        try:
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise StellaError(f"{path} is not JSON: {error}.") from error

    def json_object(self, name: str) -> dict[str, Any]:
        """The parsed JSON file, which must hold an object."""
        value = self.json(name)
        if not isinstance(value, dict):
            raise StellaError(f"{self.path(name)} must hold a JSON object, not {type(value).__name__}.")
        return value


def _boundary(root: Path) -> Path:
    """What links may point into: the directory, or for a snapshot in a hub cache, whose files are links into
    `../../blobs`, the repository's cache folder."""
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        return root.parent.parent
    return root
