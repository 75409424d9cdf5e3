"""The recipe reference, generated from docstrings, describes every key."""

import dataclasses
import re

import pytest
from pages import DOCS

from train import recipe

SECTIONS = re.findall(r"^::: train\.recipe\.(\w+)$", (DOCS / "api" / "recipe.md").read_text(), re.MULTILINE)


def test_every_section_is_listed():
    assert {name for name in vars(recipe) if name.endswith("Section")} | {"Recipe"} == set(SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_is_described(name):
    section = getattr(recipe, name)
    described = re.findall(r"^      (\w+): ", section.__doc__.split("Attributes:")[1], re.MULTILINE)
    assert set(described) == {field.name for field in dataclasses.fields(section)}
