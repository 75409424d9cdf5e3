"""What evaluators report of a model; sentence-transformers' look for it as `model_card_data`."""

from collections.abc import Hashable, Mapping
from typing import Any


class ModelCardData:
    """Keeps the metrics of each evaluator that ran, as sentence-transformers' class does; nothing is written."""

    def __init__(self) -> None:
        self.eval_results_dict: dict[Hashable, dict[str, Any]] = {}

    def set_evaluation_metrics(
        self, evaluator: Hashable, metrics: Mapping[str, Any], epoch: int = 0, step: int = 0
    ) -> None:
        """Keeps an evaluator's metrics; those of its last run, as `epoch` and `step` belong to a training log."""
        self.eval_results_dict[evaluator] = dict(metrics)
