"""Links and paths in README, CONTRIBUTING and the guides lead to files that exist."""

import re
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT, prose_of

READMES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bench/README.md")]
READMES += [ROOT / "examples" / "README.md"]

# A path of the repository, in backquotes.
NAMED = re.compile(r"`((?:bench|convert|docs|examples|stella_jax|tests|tools|train)/[\w/.-]*\w)`")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs generate them."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link}: file not found"
        if anchor and target.parent != DOCS / "api":
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page):
    for path in NAMED.findall(prose_of(page)):
        assert (ROOT / path).exists(), f"{path}: file not found"
