"""The guides name every option of the commands."""

import re

import pytest
from pages import DOCS

from stella_jax.cli.main import main

# Where the options of a command are explained. `mine` has those of mine_hard_negatives, which its guide refers to.
GUIDES = {
    "embed": ("embed.md", "clusters.md"),
    "verify": ("embed.md",),
    "search": ("embed.md",),
    "rank": ("rerank.md", "embed.md"),
    "score": ("rerank.md", "embed.md", "clusters.md"),
    "convert": ("convert.md",),
    "train": ("fine-tune.md",),
}


@pytest.mark.parametrize("command", GUIDES)
def test_every_option_is_named(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out)) - {"-h", "--help"}
    guides = "".join((DOCS / name).read_text() for name in GUIDES[command])
    missing = {each for each in shown if not re.search(rf"(?<![\w-]){each}(?![\w-])", guides)}
    assert {each for each in missing if not each.startswith("--no-")} == set()
