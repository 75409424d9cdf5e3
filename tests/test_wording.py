"""Words and phrases that the repository does not use, as there is a plainer or more usual one."""

import re
from collections.abc import Iterator
from pathlib import Path

from paths import ROOT

# A pattern, and what to write in its place.
RETIRED = {
    r"\bcrews?\b": "worker pool",
    r"\blookout\b": "heartbeat",
    r"\bpatience\b(?!=)": "timeout",
    r"\bjournal\b": "progress log",
    r"\btold\b": "called with, reported, determined by",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bbegun\b": "started",
    r"\banew\b": "again",
    r"\bsound\b": "valid",
    r"\bstruck\b": "killed, interrupted",
    r"\bstillborn\b": "failed to start",
    r"\bcarried\b": "passthrough, copied",
    r"\bgo(es)? on\b": "continue",
    r"\bin the midst\b": "in the middle, during",
    r"\bstands? twice\b": "occurs twice",
    r"\b(of no kind|not offered)\b": "unsupported",
    r"\b(is|are) none of\b": "is not one of",
    r"(?<!there )\b(is|are|was|were) no\b(?! longer| more| less)": "is not a, there is no",
    r"\bthat\s+of\b": "the noun itself",
    r"\bthose\s+that\b": "the noun itself",
    r"\bwhat follows\b": "the noun itself",
    r"\bwhoever\b": "the noun itself",
}

JOB_FOLDERS = ("stella_jax", "convert", "train", "tests", "bench", "docs", "tools", "examples")
SUFFIXES = (".py", ".md", ".toml", ".yml", ".ambr")
# Records of the past, and data.
EXCEPTIONS = ("CHANGELOG.md", "bench/LOG.md", "bench/results/", "tests/goldens/", "tests/data/", "tests/test_wording")


def sources() -> Iterator[Path]:
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for folder in JOB_FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in sorted(files):
        name = path.relative_to(ROOT).as_posix()
        if (path.suffix in SUFFIXES or name == "Makefile") and not name.startswith(EXCEPTIONS):
            yield path


def test_retired_words():
    found, words = [], re.compile("|".join(RETIRED), re.IGNORECASE)
    for path in sources():
        text = path.read_text()
        for match in words.finditer(text):
            better = next(better for word, better in RETIRED.items() if re.match(word, match[0], re.IGNORECASE))
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {match[0]!r}; use: {better}")
    assert not found, "\n".join(found)
