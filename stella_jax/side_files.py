"""The files beside the weights: configuration, tokenizer and cards, copied byte by byte."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from stella_jax.directory import Directory
from stella_jax.errors import StellaError
from stella_jax.flax_weights import PROVENANCE
from stella_jax.orbax_store import PARAMS

SUFFIXES = (".json", ".txt", ".md", ".model")
# Of a card, such as curves.png: at the top, and no larger than this.
PICTURES = (".png", ".svg", ".jpg", ".jpeg")
MAX_PICTURE_BYTES = 16 * 2**20
# tokenizer.json, the largest of the others, has 17 MB where it is published.
MAX_BYTES = 64 * 2**20

NAMES = ("LICENSE", "NOTICE", ".gitattributes")

# Of an export of training: the adapter, whose base is another checkpoint.
ADAPTER = "adapter"

# Exports for other runtimes, and what belongs to one layout or checkpoint only.
SKIPPED_FOLDERS = ("onnx", "openvino", PARAMS, ADAPTER)


def side_files(directory: Directory) -> list[str]:
    """Relative names of the files to carry along, sorted.

    Raises:
      StellaError: one leads out of the directory, or is far larger than such files are.
    """
    names = sorted(name for name in _files(directory) if _wanted(directory, name))
    for name in names:
        if (size := directory.path(name).stat().st_size) > MAX_BYTES:
            raise StellaError(f"{directory.path(name)}: {size} bytes, and {MAX_BYTES} are allowed; remove the file.")
    return names


def left_behind(directory: Directory) -> list[str]:
    """Relative names of the files that are neither copied nor weights: Python, pickles, exports."""
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
    """Files at the top and one folder down (a module's folder), hidden folders aside."""
    for path in directory.root.iterdir():
        if path.is_file():
            yield path.name
        elif path.is_dir() and not path.name.startswith(".") and path.name not in SKIPPED_FOLDERS:
            yield from (f"{path.name}/{below.name}" for below in directory.path(path.name).iterdir() if below.is_file())
