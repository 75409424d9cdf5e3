"""Reads a checkpoint directory so that nothing in it can lead out of it."""

import json
import os
from pathlib import Path
from typing import Any

from stella_jax.errors import StellaError, short_repr

# Published side files are a few kilobytes; tokenizer.json, the largest, is not read here. A parsed file can take thirty
# times its size in memory.
MAX_JSON_BYTES = 8 * 2**20

# Where sentence-transformers keeps prompts and the similarity.
SETTINGS = "config_sentence_transformers.json"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as sentence-transformers does."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


class Directory:
    """Read-only access to the files below `root`, by relative path."""

    def __init__(self, root: Path):
        if not root.is_dir():
            raise StellaError(f"{root}: not a directory; pass a checkpoint directory.")
        self.root = root
        self._boundary = _boundary(root.resolve())

    def path(self, name: str) -> Path:
        """The path of a file by its relative path, whether or not it exists.

        Raises:
          StellaError: it is not a valid file name, or it leads out of the directory, perhaps through a link.
        """
        path = self.root / name
        try:
            inside = path.resolve().is_relative_to(self._boundary)
            path.is_file()
        except (ValueError, OSError, RuntimeError) as error:  # NUL, too long, not readable, circular links
            why = error.strerror if isinstance(error, OSError) else error
            raise StellaError(f"{self.root}: {short_repr(name)} cannot be read as a file ({why}).") from error
        if not inside:
            raise StellaError(
                f"{short_repr(name)}: leads out of {self.root}, and every file of a checkpoint must be inside it; copy "
                "the checkpoint with its files in place of links (cp -rL)."
            )
        return path

    def has(self, name: str) -> bool:
        """Whether there is a file of this name.

        Raises:
          StellaError: there is something else of this name: a folder, a pipe, a device, or a broken link.
        """
        path = self.path(name)
        if os.path.lexists(path) and not path.is_file():
            what = "a folder" if path.is_dir() else "a pipe or a device" if path.exists() else "a broken link"
            raise StellaError(f"{path}: {what}, not a file; download the file again, or remove what is there.")
        return path.is_file()

    def json(self, name: str) -> Any:
        """The parsed JSON file.

        Raises:
          StellaError: it is missing, far too large, or not JSON.
        """
        path = self.path(name)
        if not self.has(name):
            raise StellaError(f"{path}: file not found.")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise StellaError(f"{path}: larger than {MAX_JSON_BYTES} bytes; download the file again.")
        try:
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise StellaError(f"{path}: not JSON ({error}); download the file again.") from error

    def json_object(self, name: str) -> dict[str, Any]:
        """The parsed JSON file, which must hold an object."""
        value = self.json(name)
        if not isinstance(value, dict):
            raise StellaError(f"{self.path(name)}: must hold a JSON object, not {short_repr(value)}.")
        return value


def _boundary(root: Path) -> Path:
    """The folder that links must stay inside: the directory, or in a Hub cache the repository's folder, as the files of
    a snapshot are links into `../../blobs`."""
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        return root.parent.parent
    return root
