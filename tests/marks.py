"""Marks for cases that `make test` leaves out."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*cases: Any) -> Iterable[Any]:
    """Cases of a parametrized test that run with `make slow`."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def nightly(*cases: Any) -> Iterable[Any]:
    """Cases of a parametrized test that run with `make nightly`."""
    return [pytest.param(case, marks=pytest.mark.nightly) for case in cases]
