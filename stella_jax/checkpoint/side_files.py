"""The files beside the weights (configuration, tokenizer, cards), which are copied byte by byte."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from stella_jax.checkpoint.directory import Directory
from stella_jax.checkpoint.flax_weights import PROVENANCE
from stella_jax.checkpoint.orbax_store import PARAMS
from stella_jax.errors import StellaError

SUFFIXES = (".json", ".txt", ".md", ".model")
# Pictures of a card, such as curves.png: only in the checkpoint's own folder, and no larger than this.
PICTURES = (".png", ".svg", ".jpg", ".jpeg")
MAX_PICTURE_BYTES = 16 * 2**20
# The largest published file of the others is a tokenizer.json of 17 MB.
MAX_BYTES = 64 * 2**20

NAMES = ("LICENSE", "NOTICE", ".gitattributes")

# The adapter in an export of training; its base is another checkpoint.
ADAPTER = "adapter"

# Exports for other runtimes, and folders that belong to one layout or checkpoint.
SKIPPED_FOLDERS = ("onnx", "openvino", PARAMS, ADAPTER)


def side_files(directory: Directory) -> list[str]:
    """Relative paths of the files to copy, sorted.

    Raises:
      StellaError: a file leads out of the directory, or is too large.
    """
    names = sorted(name for name in _files(directory) if _wanted(directory, name))
    for name in names:
        if (size := directory.path(name).stat().st_size) > MAX_BYTES:
            raise StellaError(
                f"{directory.path(name)}: {size} bytes (at most {MAX_BYTES} are allowed); remove the file."
            )
    return names


def left_behind(directory: Directory) -> list[str]:
    """Relative paths of the files that are neither copied nor weights: Python, pickles, exports."""
    return sorted(n for n in _files(directory) if not _wanted(directory, n) and not n.endswith(".safetensors"))


def copy_side_files(directory: Directory, destination: Path) -> None:
    for name in side_files(directory):
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(directory.path(name), target)


def _wanted(directory: Directory, name: str) -> bool:
    path = Path(name)
    if path.suffix in PICTURES:
        return name == path.name and (directory.root / name).stat().st_size <= MAX_PICTURE_BYTES
    return (path.suffix in SUFFIXES or path.name in NAMES) and path.name != PROVENANCE


def _files(directory: Directory) -> Iterator[str]:
    """Files in the checkpoint's folder and in its subfolders (modules), except hidden ones."""
    for path in directory.root.iterdir():
        if path.is_file():
            yield path.name
        elif path.is_dir() and not path.name.startswith(".") and path.name not in SKIPPED_FOLDERS:
            yield from (f"{path.name}/{below.name}" for below in directory.path(path.name).iterdir() if below.is_file())
