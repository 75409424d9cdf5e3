"""What tests of an export and of its card share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets_of_rows import dataset_of

from train.card import Origin
from train.identity import identity
from train.recipe import recipe_of

ROWS = dataset_of([("a", "p", "n"), ("b", "q", "m")], "rows.jsonl", name="rows")
SCORES = {"loss": 4.0, "cosine_accuracy": 0.5, "cosine_mrr@10": 0.25}


def origin_of(model: str, step: int = 2, **more) -> Origin:
    recipe = recipe_of({"model": model, "output": "out", "data": {"train": "t", "eval": "e"}, **more})
    data = {"train": (ROWS,), "eval": (ROWS,)}
    return Origin(recipe, identity(recipe, data, {"encoder": "e" * 64, "heads": {"64": "h" * 64}}), data, step)


Export = Callable[..., tuple[Path, dict[str, np.ndarray]]]
