"""The model card's example and the verdict on its numbers."""

from types import SimpleNamespace

import numpy as np
import pytest

from stella_jax import Stella
from stella_jax.cli.demo import run_demo

PUBLISHED = np.array([[0.8398, 0.2990], [0.3282, 0.8095]], np.float32)


class Published:
    """Has the shapes and similarities of the published stella."""

    def __init__(self, similarity: np.ndarray, **changed: int):
        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "vocab_size": 30528} | changed
        self.config = SimpleNamespace(**sizes)
        self.dim = 1024
        self.prompts = {"s2p_query": "a", "s2s_query": "b"}
        self._similarity = similarity

    def encode_query(self, queries, prompt_name):
        return np.zeros((len(queries), 1024))

    def encode_document(self, documents):
        return np.zeros((len(documents), 1024))

    def similarity(self, a, b):
        return self._similarity


def test_published_weights_are_recognized():
    output = str(run_demo(Published(PUBLISHED), "s2p"))  # pyright: ignore[reportArgumentType]
    lines = output.splitlines()
    assert lines[:4] == ["0.8398  0.2990", "0.3282  0.8095", "", "0.8398  What are some ways to reduce stress?"]
    assert lines[4].startswith("        There are many effective ways")
    assert lines[6] == "0.8095  What are the benefits of drinking green tea?"
    assert lines[7].startswith("        Green tea has been consumed")
    assert lines[-1].startswith("The diagonal matches the model card's 0.8398 and 0.8095 within 0.001")


@pytest.mark.parametrize(
    ("model", "task", "start"),
    [
        (Published(PUBLISHED + np.float32(0.002)), None, "The diagonal does NOT match"),
        (Published(PUBLISHED), "s2s", "These numbers cannot be compared"),
        (Published(PUBLISHED, vocab_size=100), "s2p", "These numbers cannot be compared"),
    ],
)
def test_other_weights_and_settings_are_not_recognized(model, task, start):
    assert run_demo(model, task).verdict.startswith(start)


def test_embedded_checkpoint():
    model = Stella.from_pretrained("tiny", dim=32)
    model.max_seq_length = 32
    demo = run_demo(model, "s2s")
    queries = model.encode(demo.example["queries"], prompt_name="s2s_query")
    np.testing.assert_array_equal(demo.similarity, model.similarity(queries, model.encode(demo.example["documents"])))
    assert demo.verdict.startswith("These numbers cannot be compared")


def test_checkpoint_without_the_prompt(arctic, refused):
    with refused("s2p_query"):
        run_demo(arctic, "s2p")
