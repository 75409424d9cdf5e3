"""The guides' pages, and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = ROOT / "README.md"

# An invisible comment above a block: it is checked for its syntax only.
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code.

    Attributes:
      line: of its first line, from 1.
      output: what the page says that it prints, in the `text` block right after it.
    """

    page: Path
    line: int
    language: str
    text: str
    is_run: bool
    output: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in order; each `text` block is the output of the one before it."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    fence, start, is_run, since_block = "", 0, True, False
    for number, line in enumerate(lines):
        if not fence and line.startswith("```"):
            fence, start = line, number + 1
        elif fence and line == "```":
            text, language = "\n".join(lines[start:number]) + "\n", fence.removeprefix("```").strip()
            if language == "text" and is_run:
                assert since_block and found[-1].output is None, f"{page.name}:{start}: a `text` block of no command"
                last = found.pop()
                found.append(Block(last.page, last.line, last.language, last.text, last.is_run, text))
            else:
                found.append(Block(page, start + 1, language, text, is_run))
            fence, is_run, since_block = "", True, True
        elif not fence and NOT_RUN.fullmatch(line):
            is_run = False
        elif not fence and line.startswith("#"):
            since_block = False
    assert not fence, f"{page.name}:{start}: the block does not end"
    return found


def prose_of(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
