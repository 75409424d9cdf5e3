"""Every built-in loss is compared with a reference, runs in a step, and is named in the card, benchmarks and docs."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
import test_losses
import test_side_by_side
import test_step_losses
from paths import ROOT

from train.card_datasets import CLASSES
from train.losses import BUILT_IN


def names_of(losses: Iterable[Any]) -> set[str]:
    """Names of the built-in losses among these functions, which may have arguments."""
    functions = [getattr(loss, "func", loss) for loss in losses]
    return {name for name, spec in BUILT_IN.items() if spec.function in functions}


def found_in(file: str, pattern: str) -> set[str]:
    return {*re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)}


COMPARED = names_of(case.base for case in test_losses.CASES.values())
OWN = names_of(case.base for case in test_losses.OWN.values())  # without a class in sentence-transformers
SIDE_BY_SIDE = [*test_side_by_side.LOSSES.values(), *(loss for *_, loss in test_side_by_side.SCORED.values())]
ON_THE_PAGE = found_in("docs/from-sentence-transformers.md", r"`(\w+Loss)`")

PLACES = {
    "tests/train/test_losses.py, CASES (or OWN, without a peer)": COMPARED | OWN,
    "tests/train/test_side_by_side.py, LOSSES or SCORED": names_of(SIDE_BY_SIDE),
    "tests/train/test_step_losses.py, LOSSES": names_of(loss for *_, loss in test_step_losses.LOSSES.values()),
    "train/card_datasets.py, CLASSES": {*CLASSES} | OWN,
    "bench/peer_losses.py, LOSSES": found_in("bench/peer_losses.py", r'^    "(\w+)": Compared\('),
    "docs/fine-tune.md, the table of losses": found_in("docs/fine-tune.md", r"^\| `(\w+)` \| "),
    "docs/api/train.md": found_in("docs/api/train.md", r"^::: train\.losses\.(\w+)$"),
    "docs/from-sentence-transformers.md, the class": {n for n, kind in CLASSES.items() if kind in ON_THE_PAGE} | OWN,
}


@pytest.mark.parametrize("place", PLACES)
def test_every_loss_is_listed(place: str) -> None:
    missing = [name for name in BUILT_IN if name not in PLACES[place]]
    assert not missing, f"{place}: the loss {missing[0]!r} is missing; add it there"
