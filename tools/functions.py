"""Training data for code search: functions of Python's standard library with the first sentence of their docstring.

`python -m tools.functions examples/python` wrote the files there, with Python 3.11.7. All rows of a source file are in
the same split. Files with their own copyright are left out, so that Python's licence covers all rows.
"""

import argparse
import ast
import gzip
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
HELD_OUT = 500  # minimum number of rows of eval and of test
MAX_CHARACTERS = 400  # of a function
SEED = 1
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "pydoc_data"}
OWN_COPYRIGHT = re.compile(r"copyright(?!.*Python Software Foundation)", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.!?])\s")

Row = tuple[str, str]


def rows_of(source: str) -> Iterator[Row]:
    """Yields (sentence, code without docstring) of each function that has both."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (docstring := ast.get_docstring(node)):
            sentence = SENTENCE_END.split(" ".join(docstring.split("\n\n")[0].split()))[0]
            node.body, node.decorator_list = node.body[1:], []
            if node.body and 3 <= len(sentence.split()) <= 40:
                yield sentence, ast.unparse(node)[:MAX_CHARACTERS]


def rows_by_file(library: Path) -> list[list[Row]]:
    """The rows of each file, without duplicate sentences or functions; files are shuffled with SEED."""
    files = [path for path in sorted(library.rglob("*.py")) if not SKIPPED & set(path.relative_to(library).parts)]
    sources = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    seen: set[str] = set()
    found = []
    for source in sources:
        if not OWN_COPYRIGHT.search(source):
            rows = [row for row in rows_of(source) if not seen & set(row) and not seen.update(row)]
            found.append(rows)
    random.Random(SEED).shuffle(found)
    return found


def write(library: Path, folder: Path) -> dict[str, int]:
    """Writes eval, test and train rows as {"anchor", "positive"}; returns the number of rows of each."""
    splits: dict[str, list[Row]] = {"eval": [], "test": [], "train": []}
    for rows in rows_by_file(library):
        split = next((name for name in ("eval", "test") if len(splits[name]) < HELD_OUT), "train")
        splits[split] += rows
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        text = "".join(json.dumps({"anchor": sentence, "positive": code}) + "\n" for sentence, code in rows)
        (folder / f"functions_{name}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return {name: len(rows) for name, rows in splits.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.functions", description="Write rows for code search.")
    parser.add_argument("out", type=Path, help="directory to write")
    print(write(LIBRARY, parser.parse_args().out))
