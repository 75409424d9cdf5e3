"""A hook of mkdocs: each object that an API page lists must be on the built page, with its listed members.

mkdocstrings leaves out a member that it does not find, such as an inherited one, without a warning.
"""

import logging
import re
import textwrap
from typing import Any

import yaml

ENTRY = re.compile(r"^::: (\S+)\n((?:    .*\n)*)", re.MULTILINE)

_log = logging.getLogger("mkdocs.hooks.api_pages")  # `mkdocs build --strict` fails on a warning


def on_page_content(html: str, *, page: Any, **ignored: Any) -> None:
    """Called by mkdocs with each rendered page."""
    for name in missing(page.markdown, html):
        _log.warning("%s: %s is listed, but not on the page", page.file.src_uri, name)


def missing(markdown: str, html: str) -> list[str]:
    """The objects and members that a page lists and that have no anchor in its HTML."""
    return [name for name in listed(markdown) if f'id="{name}"' not in html]


def listed(markdown: str) -> list[str]:
    """Full names of the objects and members that a page lists."""
    names = []
    for name, settings in ENTRY.findall(f"{markdown}\n"):
        members = (yaml.safe_load(textwrap.dedent(settings)) or {}).get("options", {}).get("members") or []
        names += [name, *(f"{name}.{member}" for member in members)]
    return names
