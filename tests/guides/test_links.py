"""Links of what the site does not hold lead to files, and so do the paths that any page names."""

import re
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT, prose_of

READMES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bench/README.md")]
READMES += [ROOT / "examples" / "README.md"]

# A path of the repository, in backquotes.
NAMED = re.compile(r"`((?:bench|convert|docs|examples|stella_jax|tests|tools|train)/[\w/.-]*\w)`")


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link}: file not found"
        if anchor and target.parent != DOCS / "api":
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_are_there(page):
    for path in NAMED.findall(prose_of(page)):
        assert (ROOT / path).exists(), f"{path}: file not found"
