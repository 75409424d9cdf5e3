"""Metrics of a model; sentence-transformers' evaluators write them to `model_card_data`."""

from collections.abc import Hashable, Mapping
from typing import Any


class ModelCardData:
    """Keeps the metrics of each evaluator, like sentence-transformers' class, but writes no model card."""

    def __init__(self) -> None:
        self.eval_results_dict: dict[Hashable, dict[str, Any]] = {}

    def set_evaluation_metrics(
        self, evaluator: Hashable, metrics: Mapping[str, Any], epoch: int = 0, step: int = 0
    ) -> None:
        """Keeps the metrics of an evaluator's last run; `epoch` and `step` are ignored."""
        self.eval_results_dict[evaluator] = dict(metrics)
