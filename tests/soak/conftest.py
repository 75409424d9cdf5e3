"""Fixtures of the long tests, which run with -m slow and print what they saw."""

import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[1] / "data" / "corpus_20k.jsonl.gz"


@pytest.fixture(scope="module", autouse=True)
def optimized() -> Iterator[None]:
    """Processes compile as users do: these run for longer than they compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, for all processes."""
    return tmp_path_factory.mktemp("cache")


def first(rows: int, path: Path) -> Path:
    with gzip.open(CORPUS) as file:
        path.write_bytes(b"".join(itertools.islice(file, rows)))
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 real texts."""
    return first(10_000, tmp_path_factory.mktemp("corpus") / "corpus_10k.jsonl")


@pytest.fixture(scope="session")
def short_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 2,000 of them, and 20 again at the end, whose ids are repeated."""
    path = first(2000, tmp_path_factory.mktemp("corpus") / "corpus_2k.jsonl")
    path.write_bytes(path.read_bytes() + b"".join(path.read_bytes().splitlines(keepends=True)[:2000:100]))
    return path


@pytest.fixture(scope="session")
def medium_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 6,000 of them."""
    return first(6000, tmp_path_factory.mktemp("corpus") / "corpus_6k.jsonl")


@pytest.fixture(scope="session")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 20,000 texts five times, with new ids."""
    path = tmp_path_factory.mktemp("corpus") / "corpus_100k.jsonl"
    with gzip.open(CORPUS) as file:
        rows = [json.loads(line) for line in file]
    with path.open("w") as file:
        for i, row in itertools.product(range(5), rows):
            file.write(json.dumps({"id": f"{i}-{row['id']}", "text": row["text"]}) + "\n")
    return path


@pytest.fixture
def tell(capsys: pytest.CaptureFixture) -> Callable[[str], None]:
    """Prints a sentence even if the test passes."""

    def say(sentence: str) -> None:
        with capsys.disabled():
            print(f"\n  {sentence}", end="", flush=True)

    return say
