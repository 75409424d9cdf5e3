"""The example of stella's model card: two queries, two documents, and their published cosines."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stella_jax.embedder import Stella

EXAMPLE = Path(__file__).parent / "model_card_example.json"
PROMPTS = {"s2p": "s2p_query", "s2s": "s2s_query"}
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Demo:
    """The example, the model's similarities [queries, documents], and how they compare with the model card."""

    example: dict[str, Any]
    similarity: np.ndarray
    verdict: str

    def __str__(self) -> str:
        matrix = "\n".join("  ".join(f"{score:.4f}" for score in row) for row in self.similarity)
        return "\n\n".join([matrix, *map(self._answer, range(len(self.similarity))), self.verdict])

    def _answer(self, query: int) -> str:
        best = int(np.argmax(self.similarity[query]))
        question, answer = self.example["queries"][query], self.example["documents"][best]
        return f"{self.similarity[query, best]:.4f}  {question}\n        {answer}"


def run_demo(model: Stella, task: str | None = None) -> Demo:
    """Embeds the example; queries take the prompt of the task, or the checkpoint's default if it is None.

    Raises:
      StellaError: the checkpoint has no prompt for the task; the error lists all.
    """
    example = json.loads(EXAMPLE.read_text())
    queries = model.encode_query(example["queries"], PROMPTS[task] if task else None)
    similarity = model.similarity(queries, model.encode_document(example["documents"]))
    return Demo(example, similarity, _verdict(model, task, np.diag(similarity), example["expected_diagonal"]))


def _verdict(model: Stella, task: str | None, found: np.ndarray, expected: list[float]) -> str:
    published = " and ".join(f"{score:.4f}" for score in expected)
    if not _comparable(model, task):
        return (
            "These numbers cannot be compared with the model card's, which are for the published weights of "
            f"stella_en_400M_v5, head 1024, task s2p (diagonal {published}); this is another model or setting."
        )
    if np.allclose(found, expected, rtol=0, atol=TOLERANCE):
        return f"The diagonal matches the model card's {published} within {TOLERANCE}: these are the published weights."
    return (
        f"The diagonal does NOT match the model card's {published} within {TOLERANCE}, although the shapes are those "
        "of stella_en_400M_v5: these are not the published weights, or something is wrong."
    )


def _comparable(model: Stella, task: str | None) -> bool:
    """Whether shapes and settings are the same as for the model card's numbers."""
    config = model.config
    shape = (config.hidden_size, config.num_hidden_layers, config.vocab_size, model.dim)
    return shape == (1024, 24, 30528, 1024) and "s2p_query" in model.prompts and task in (None, "s2p")
