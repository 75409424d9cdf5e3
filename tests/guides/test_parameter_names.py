"""The guide on conversion lists every parameter of every architecture, with its axes."""

import re

import pytest
from pages import DOCS

from stella_jax.models import architectures


@pytest.mark.parametrize("architecture", architectures(), ids=lambda architecture: architecture.class_names[0])
def test_every_parameter_is_listed(architecture):
    rows = set(re.findall(r"^\| `(.+)` \| `(.+)` \| (.+) \|$", (DOCS / "convert.md").read_text(), re.MULTILINE))
    for weight in architecture.weights:
        axes = ("L" if weight.stacked else "") + weight.flax_axes.replace(" ", "")
        assert (weight.torch, f"encoder/{weight.flax}", ", ".join(axes)) in rows
