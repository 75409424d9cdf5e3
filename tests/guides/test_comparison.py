"""The tables of the page on sentence-transformers list every argument and method, with the right verdict."""

import inspect
import re
from collections.abc import Iterator

import pytest
from pages import DOCS

from stella_jax import Stella

PAGE = DOCS / "from-sentence-transformers.md"
VERDICTS = ("same", "different", "missing")

# Attributes of one of our models that the class does not show.
INSTANCE = ("dtype", "tokenizer")

METHODS = {
    "from_pretrained": "__init__",
    "encode": "encode",
    "similarity": "similarity",
    "similarity_pairwise": "similarity_pairwise",
    "evaluate": "evaluate",
    "truncate_embeddings": "truncate_embeddings",
    "save_pretrained": "save_pretrained",
}


def table(heading: str) -> dict[str, str]:
    """The verdict on each name in the first table of a section."""
    section = re.split(r"^## ", PAGE.read_text().split(f"\n## {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE)
    found = dict(rows)
    assert len(found) == len(rows), f"{heading}: a name is listed twice"
    assert set(found.values()) <= set(VERDICTS)
    return found


@pytest.fixture(scope="module")
def theirs() -> type:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer


def defaults(function) -> dict[str, object]:
    parameters = inspect.signature(function).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in ("self", "cls")}


def own_names(cls: type) -> Iterator[str]:
    """Public names that sentence-transformers defines, and not torch."""
    for base in cls.__mro__:
        if base.__module__.startswith("sentence_transformers."):
            yield from (name for name in vars(base) if not name.startswith("_"))


@pytest.mark.torch
@pytest.mark.parametrize("heading", METHODS)
def test_every_argument_is_listed(heading, theirs):
    assert table(heading).keys() == defaults(getattr(theirs, METHODS[heading])).keys()


@pytest.mark.torch
@pytest.mark.parametrize("heading", METHODS)
def test_same_arguments(heading, theirs):
    ours = defaults(getattr(Stella, heading))
    expected = defaults(getattr(theirs, METHODS[heading]))
    for name, verdict in table(heading).items():
        if verdict == "same":
            assert name in ours and ours[name] == expected[name], name
        elif verdict == "missing":
            assert name not in ours, name


@pytest.mark.torch
@pytest.mark.parametrize("name", ["encode_query", "encode_document"])
def test_encode_query_and_encode_document_arguments(name, theirs):
    assert defaults(getattr(theirs, name)) == defaults(theirs.encode)


@pytest.mark.torch
def test_every_method_is_listed(theirs):
    assert table("All methods").keys() == set(own_names(theirs))


def test_existing_methods():
    for name, verdict in table("All methods").items():
        assert (verdict == "missing") != (hasattr(Stella, name) or name in INSTANCE), name
