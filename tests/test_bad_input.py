"""What a stranger may hand us: every checkpoint of these tables is refused in one readable sentence, at once.

A new kind of bad input is a line in one of the tables: what damages a sound checkpoint, and what the error says.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_params import PARAMETERS
from bad_settings import SETTINGS
from bad_tokenizers import TOKENIZERS
from bad_weights import WEIGHTS_FILES
from damage import Damage, assert_refused, sharded
from paths import GOLDENS

from convert import to_flax
from stella_jax import Stella, StellaError
from stella_jax.checkpoint import Checkpoint

TABLES: dict[str, tuple[str, dict[str, tuple[Damage, str]]]] = {
    "settings": ("torch", SETTINGS),
    "weights": ("torch", WEIGHTS_FILES),
    "tokenizer": ("torch", TOKENIZERS),
    "parameters": ("flax", PARAMETERS),
}


@pytest.fixture(scope="module")
def flax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flax") / "stella"
    to_flax(Checkpoint.open(GOLDENS / "stella"), "stella", path)
    return path


@pytest.fixture
def copy(flax: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a sound checkpoint in this layout."""
    sources = {"torch": GOLDENS / "stella", "flax": flax}
    return lambda layout: Path(shutil.copytree(sources[layout], tmp_path / "stella"))


@pytest.mark.parametrize(("table", "name"), [(table, name) for table, (_, rows) in TABLES.items() for name in rows])
def test_is_refused_in_one_sentence(table, name, copy, capfd):
    layout, rows = TABLES[table]
    path, began = copy(layout), time.monotonic()
    assert_refused(path, *rows[name])
    assert time.monotonic() - began < 20
    assert capfd.readouterr().err == "", "something spoke before us"


@pytest.mark.parametrize("layout", ["torch", "flax"])
def test_the_copy_itself_is_sound(layout, copy):
    Stella.from_pretrained(copy(layout))


def test_a_dimension_that_is_not_there():
    with pytest.raises(StellaError, match="there is no head of dimension 512; this checkpoint has 32, 48, 64 and 128"):
        Stella.from_pretrained(GOLDENS / "stella", dim=512)


@pytest.mark.parametrize("place", ["missing", "README.md"])
def test_no_directory(tmp_path, place):
    (tmp_path / "README.md").write_text("#")
    with pytest.raises(StellaError, match=rf"{place}'? is (neither|not) a directory"):
        Stella.from_pretrained(tmp_path / place)


def test_shards_are_sound(checkpoint_copy):
    path = checkpoint_copy()
    sharded(lambda _: None)(path)
    Stella.from_pretrained(path)


def test_a_file_that_may_not_be_read(monkeypatch):
    def refused(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(StellaError, match=r"modules\.json cannot be read: Permission denied\."):
        Stella.from_pretrained(GOLDENS / "stella")


def test_pickles_and_python_are_never_opened(checkpoint_copy):
    path = checkpoint_copy()
    for name in ("pytorch_model.bin", "modeling.py", "configuration.py", "2_Dense_64/pytorch_model.bin"):
        (path / name).mkdir()  # whoever opens it fails
    Stella.from_pretrained(path)


def test_links_within_the_checkpoint_are_followed(copy):
    path = copy("flax")
    for name in ("params/state/encoder.embeddings.norm.scale/0", "config.json"):
        (path / name).rename(path / "elsewhere" if name == "config.json" else path / "numbers")
        (path / name).symlink_to(path / "elsewhere" if name == "config.json" else path / "numbers")
    Stella.from_pretrained(path)
