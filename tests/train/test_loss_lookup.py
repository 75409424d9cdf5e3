"""Lookup of a recipe's loss: where a user's function is found, and errors."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from train import losses
from train.loss_lookup import find_loss
from train.sections import LossSection

ROWS = tuple(jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 8)), jnp.float32))
OWN = """
def my_loss(embeddings, columns, factor=1.0):
    anchor, positive, negative = embeddings
    return factor * ((anchor - positive) ** 2).sum(1)
"""


@pytest.fixture(autouse=True)
def _undisturbed(tmp_path, monkeypatch) -> None:
    """A working directory of its own, which is not on the path, as under a console script; modules come and go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(Path.cwd()))])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file that is changed within a second is read again


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return write


def test_a_built_in_loss_gets_the_keys_of_its_section():
    found = find_loss(LossSection(distance="cosine", margin=0.5, scale=3.0))
    np.testing.assert_array_equal(found(ROWS, {}), losses.triplet(ROWS, distance="cosine", margin=0.5))
    found = find_loss(LossSection("multiple_negatives_ranking", scale=3.0, directions=("query_to_doc", "doc_to_query")))
    expected = losses.multiple_negatives_ranking(ROWS, scale=3.0, directions=("query_to_doc", "doc_to_query"))
    np.testing.assert_array_equal(found(ROWS, {}), expected)


def test_matryoshka_wraps_either(write):
    write("my_file.py", OWN)
    for name in ("triplet", "my_file:my_loss"):
        alone = find_loss(LossSection(name))
        found = find_loss(LossSection(name, matryoshka_dims=(8, 4), matryoshka_weights=(1.0, 0.5)))
        expected = losses.matryoshka(alone, (8, 4), (1.0, 0.5))(ROWS, {})
        np.testing.assert_array_equal(found(ROWS, {}), expected)


def test_stella_distillation_gets_the_prefixes_itself():
    found = find_loss(LossSection("stella_distillation", matryoshka_dims=(8, 4), margin=0.1))
    columns = {"teacher": ROWS[1]}
    expected = losses.stella_distillation(ROWS[:1], columns, matryoshka_dims=(8, 4), margin=0.1)
    np.testing.assert_array_equal(found(ROWS[:1], columns), expected)


def test_an_own_loss_in_the_working_directory_with_arguments(write):
    write("my_file.py", OWN)
    plain, doubled = (find_loss(LossSection("my_file:my_loss", args)) for args in ({}, {"factor": 2.0}))
    np.testing.assert_array_equal(doubled(ROWS, {}), 2 * plain(ROWS, {}))


def test_the_working_directory_need_not_be_on_the_path(write, tmp_path):
    """As `stella-jax train` runs: -I leaves the working directory out."""
    write("my_file.py", "from my_neighbour import factor\n" + OWN)
    write("my_neighbour.py", "factor = 2")
    root = Path(losses.__file__).parents[2]
    lines = [
        f"import sys; sys.path.append({str(root)!r})",
        "from train.loss_lookup import find_loss; from train.sections import LossSection",
        "print(find_loss(LossSection('my_file:my_loss')).__name__)",
    ]
    done = subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "my_loss", done.stderr


def test_an_own_loss_may_import_files_beside_it(write):
    write("my_neighbour.py", "one = 1.0")
    write("my_late_neighbour.py", "two = 2.0")
    write(
        "my_file.py",
        "from my_neighbour import one\n"
        "def my_loss(embeddings, columns):\n"
        "    from my_late_neighbour import two\n"
        "    return embeddings[0][:, 0] * 0 + one + two\n",
    )
    assert find_loss(LossSection("my_file:my_loss"))(ROWS, {}).tolist() == [3.0] * 4


def test_a_file_beside_it_hides_no_installed_package(write):
    for package in ("numpy", "jax", "optax", "tomllib"):
        write(f"{package}.py", "raise RuntimeError('not this one')")
    write("my_file.py", "import numpy, jax, optax, tomllib\n" + OWN)
    find_loss(LossSection("my_file:my_loss"))


def test_an_own_file_may_have_the_name_of_a_package(write):
    write("train.py", OWN)
    write("json.py", OWN)
    before = sys.modules["train"], sys.modules["json"]
    for name in ("train", "json"):
        assert find_loss(LossSection(f"{name}:my_loss"))(ROWS, {}).shape == (4,)
    assert (sys.modules["train"], sys.modules["json"]) == before


def test_a_module_of_a_package(write):
    write("my_package/__init__.py", "")
    write("my_package/constants.py", "factor = 3.0")
    write("my_package/own.py", "from .constants import factor\n" + OWN)
    assert find_loss(LossSection("my_package.own:my_loss"))(ROWS, {}).shape == (4,)


def test_an_installed_module():
    assert find_loss(LossSection("train.losses:triplet")) is losses.triplet


def test_the_file_is_read_again_after_a_change(write):
    write("my_file.py", "def my_loss(embeddings, columns): return embeddings[0][:, 0] * 0")
    find_loss(LossSection("my_file:my_loss"))
    write("my_file.py", "def my_loss(embeddings, columns): return embeddings[0][:, 0] * 0 + 1")
    assert find_loss(LossSection("my_file:my_loss"))(ROWS, {}).tolist() == [1.0] * 4


def test_a_checkpoint_s_directory_is_not_searched(write, refused):
    write("checkpoint/my_file.py", OWN)
    with refused("loss.name: ", "'my_file'"):
        find_loss(LossSection("my_file:my_loss"))
    with refused("loss.name: ", "'checkpoint/my_file:my_loss'"):
        find_loss(LossSection("checkpoint/my_file:my_loss"))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("triplets", ["'triplets'", " triplet, "]),
        ("MultipleNegativesRankingLoss", [" multiple_negatives_ranking, "]),
        pytest.param("x" * 5000, [], id="long"),
        ("my_fil:my_loss", ["'my_fil'"]),
        ("../my_file:my_loss", ["'../my_file:my_loss'", "my_module:my_loss"]),
        (":my_loss", ["':my_loss'"]),
        ("my_file:", ["'my_file:'"]),
        ("my_file:my_loss:x", ["'my_file:my_loss:x'"]),
        ("my_file:my_los", ["'my_file'", "'my_los'", " my_loss"]),
        ("my_file:constant", ["'my_file'", "'constant'", " my_loss"]),
        ("empty:my_loss", ["'empty'", "'my_loss'"]),
        ("syntax:my_loss", ["'syntax'", "SyntaxError", "line 1"]),
        ("raises:my_loss", ["'raises'", "RuntimeError", "first"]),
        ("exits:my_loss", ["'exits'", "SystemExit"]),
        ("needs:my_loss", ["'needs'", "ModuleNotFoundError", "not_installed"]),
        pytest.param(f"{'x' * 5000}:my_loss", [], id="long-module"),
    ],
)
def test_losses_that_cannot_be_found(write, name, names, refused):
    write("my_file.py", "from jax.numpy import *\nconstant = 3\n" + OWN)
    write("empty.py", "")
    write("syntax.py", "def my_loss(")
    write("raises.py", "raise RuntimeError('first\\nsecond' + 'x' * 5000)")
    write("exits.py", "import sys\nsys.exit(3)")
    write("needs.py", "import not_installed")
    with refused("loss.name: ", *names, mask=r"(?<=SyntaxError: ).*(?=\))|(?<=OSError: ).*(?=\))"):
        find_loss(LossSection(name))
    assert name.partition(":")[0] not in sys.modules or name.startswith(("my_file", "empty"))
