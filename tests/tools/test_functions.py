"""Training data for code search from a library of three files."""

import gzip
import json
from pathlib import Path

from tools.functions import rows_of, write

SOURCE = '''
def area(width, height):
    """Return the area of a
    rectangle. It may be 0.

    More of it."""
    return width * height

def short(): "Too short"

def only():
    """A docstring and nothing else."""

class Shape:
    @property
    async def name(self):
        "What people call it"
        return self._name
'''


def test_rows_are_first_sentence_and_code():
    assert list(rows_of(SOURCE)) == [
        ("Return the area of a rectangle.", "def area(width, height):\n    return width * height"),
        ("What people call it", "async def name(self):\n    return self._name"),
    ]


def test_files_stay_in_one_split_and_other_licenses_are_left_out(tmp_path: Path):
    library, out = tmp_path / "library", tmp_path / "out"
    (library / "test").mkdir(parents=True)
    function = 'def f{0}():\n    "The function number {0}"\n    return {0}\n'
    for file, numbers in {"a.py": range(600), "b.py": range(500, 1200), "c.py": range(1200, 1210)}.items():
        (library / file).write_text(
            "# Copyright (c) Python Software Foundation\n" + "".join(map(function.format, numbers))
        )
    (library / "own.py").write_text("# Copyright 1999 by somebody\n" + function.format(7000))
    (library / "test/t.py").write_text(function.format(8000))
    counts = write(library, out)
    assert sum(counts.values()) == 1210
    lines = {name: gzip.decompress((out / f"functions_{name}.jsonl.gz").read_bytes()).splitlines() for name in counts}
    assert {name: len(found) for name, found in lines.items()} == counts
    numbers = {name: {int(json.loads(line)["anchor"].split()[-1]) for line in found} for name, found in lines.items()}
    for file in (set(range(600)), set(range(600, 1200)), set(range(1200, 1210))):  # 500 to 599 come twice
        assert sum(file <= found for found in numbers.values()) == 1
