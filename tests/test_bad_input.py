"""Every checkpoint of these tables is refused at once, in one readable sentence that names what is wrong.

A new kind of bad input is a row in one of the tables: how to corrupt a valid checkpoint, and what the error names. The
errors' wording is in messages/test_bad_input.ambr.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_params import PARAMETERS
from bad_rerankers import RERANKERS
from bad_settings import SETTINGS
from bad_tokenizers import TOKENIZERS
from bad_weights import WEIGHTS_FILES
from corruptions import Corruption, sharded
from paths import GOLDENS

from convert import to_flax
from stella_jax import Reranker, Stella
from stella_jax.checkpoint.checkpoint import Checkpoint

TABLES: dict[str, tuple[str, dict[str, tuple[Corruption, str]]]] = {
    "settings": ("torch", SETTINGS),
    "weights": ("torch", WEIGHTS_FILES),
    "tokenizer": ("torch", TOKENIZERS),
    "parameters": ("flax", PARAMETERS),
    "reranker": ("reranker", RERANKERS),
}

# Rows whose wording comes in part from Python, a library or the operating system, or depends on a path's length.
VARYING = {
    ("settings", "config is not JSON"),
    ("settings", "config is empty"),
    ("settings", "config is nested"),
    ("settings", "config is not text"),
    ("settings", "config links to itself"),
    ("settings", "module path with a NUL"),
    ("settings", "module path with a surrogate"),
    ("weights", "index with a NUL"),
    ("weights", "index with a surrogate"),
    ("weights", "no tensors"),
    ("weights", "offsets overlap"),
    ("tokenizer", "broken"),
    ("tokenizer", "not text"),
    ("tokenizer", "empty"),
    ("tokenizer", "deeply nested"),
    ("tokenizer", "missing field"),
    ("parameters", "a leaf's header is not JSON"),
    ("parameters", "a million dimensions"),
}


@pytest.fixture(scope="module")
def flax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flax") / "stella"
    to_flax(Checkpoint.open(GOLDENS / "stella"), "stella", path)
    return path


@pytest.fixture
def copy(flax: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a valid checkpoint of a layout."""
    sources = {"torch": GOLDENS / "stella", "flax": flax, "reranker": GOLDENS / "gte-reranker"}
    return lambda layout: Path(shutil.copytree(sources[layout], tmp_path / "stella"))


def use(path: Path, layout: str) -> None:
    if layout == "reranker":
        Reranker.from_pretrained(path)
    else:
        Stella.from_pretrained(path, dtype="float32").tokenizer.encode(["Green tea " * 100])


@pytest.mark.parametrize(("table", "name"), [(table, name) for table, (_, rows) in TABLES.items() for name in rows])
def test_bad_checkpoint(table, name, copy, capfd, refused):
    layout, rows = TABLES[table]
    corrupt, named = rows[name]
    path = copy(layout)
    corrupt(path)
    start = time.monotonic()
    with refused(named, varies=(table, name) in VARYING):
        use(path, layout)
    assert time.monotonic() - start < 20
    assert capfd.readouterr().err == "", "a library printed to stderr"


@pytest.mark.parametrize("layout", ["torch", "flax", "reranker"])
def test_copied_checkpoint_is_valid(layout, copy):
    use(copy(layout), layout)


def test_missing_dimension(refused):
    with refused("512"):
        Stella.from_pretrained(GOLDENS / "stella", dim=512)


@pytest.mark.parametrize("place", ["missing", "README.md"])
def test_not_a_directory(tmp_path, place, refused):
    (tmp_path / "README.md").write_text("#")
    with refused(place):
        Stella.from_pretrained(tmp_path / place)


def test_shards_are_valid(checkpoint_copy):
    path = checkpoint_copy()
    sharded(lambda _: None)(path)
    Stella.from_pretrained(path)


def test_permission_denied(monkeypatch, refused):
    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with refused("modules.json"):
        Stella.from_pretrained(GOLDENS / "stella")


def test_pickles_and_python_are_never_opened(checkpoint_copy):
    path = checkpoint_copy()
    for name in ("pytorch_model.bin", "modeling.py", "configuration.py", "2_Dense_64/pytorch_model.bin"):
        (path / name).mkdir()  # opening it would fail
    Stella.from_pretrained(path)


def test_links_within_the_checkpoint_are_followed(copy):
    path = copy("flax")
    for name in ("params/state/encoder.embeddings.norm.scale/0", "config.json"):
        (path / name).rename(path / "elsewhere" if name == "config.json" else path / "numbers")
        (path / name).symlink_to(path / "elsewhere" if name == "config.json" else path / "numbers")
    Stella.from_pretrained(path)
