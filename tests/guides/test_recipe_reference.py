"""The recipe reference, generated from docstrings, describes every key."""

import dataclasses
import inspect
import re

import pytest
from pages import DOCS

from train import sections
from train.recipe import Recipe

LISTED = re.findall(r"^::: train\.(?:recipe|sections)\.(\w+)$", (DOCS / "api" / "recipe.md").read_text(), re.MULTILINE)
CLASSES = {name: getattr(sections, name) for name in sections.__all__ if name.endswith("Section")} | {"Recipe": Recipe}


def test_every_section_is_listed():
    assert {*LISTED} == {*CLASSES}


@pytest.mark.parametrize("name", CLASSES)
def test_every_key_is_described(name):
    section = CLASSES[name]
    described = re.findall(r"^  (\w+): ", (inspect.getdoc(section) or "").split("Attributes:")[1], re.MULTILINE)
    assert set(described) == {field.name for field in dataclasses.fields(section)}
