"""Marks for cases that `make test` leaves out."""

from typing import Any

import pytest


def slow(*cases: Any) -> list[Any]:
    """Cases of a parametrized test that run with `make slow`."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def nightly(*cases: Any) -> list[Any]:
    """Cases of a parametrized test that run with `make nightly`."""
    return [pytest.param(case, marks=pytest.mark.nightly) for case in cases]
