"""Prompts of `encode`, `encode_query` and `encode_document`."""

import numpy as np
import pytest
from corruptions import settings

from stella_jax import Stella

pytestmark = pytest.mark.usefixtures("two_buckets")

TEXTS = ["Green tea", "", "What are some ways to reduce stress?"]


def with_settings(path, **changes) -> Stella:
    settings(**changes)(path)
    return Stella.from_pretrained(path, dtype="float32")


def test_prompt_goes_before_each_text(stella):
    s2p, s2s = stella.prompts["s2p_query"], stella.prompts["s2s_query"]
    expected = {prompt: stella.encode([prompt + text for text in TEXTS]) for prompt in (s2p, s2s, "")}
    for found, prompt in (
        (stella.encode(TEXTS, prompt_name="s2p_query"), s2p),
        (stella.encode(TEXTS, prompt=s2s), s2s),
        (stella.encode(TEXTS, prompt_name="s2p_query", prompt=s2s), s2s),
        (stella.encode(TEXTS, prompt_name="s2p_query", prompt=""), ""),
        (stella.encode_query(TEXTS), s2p),
        (stella.encode_query(TEXTS, prompt_name="s2s_query"), s2s),
        (stella.encode_query(TEXTS, prompt=""), ""),
        (stella.encode_query(TEXTS, None, s2s), s2s),
        (stella.encode_document(TEXTS, None, s2s), s2s),
        (stella.encode_document(TEXTS), ""),
        (stella.encode_document(TEXTS, prompt_name="s2s_query"), s2s),
    ):
        np.testing.assert_array_equal(found, expected[prompt])


@pytest.mark.parametrize(
    ("changes", "default", "query", "document"),
    [
        ({"prompts": {"query": "q: ", "s2p_query": "s: "}}, "", "q: ", ""),
        ({"prompts": {"query": "", "s2p_query": "s: "}}, "", "s: ", ""),
        ({"prompts": {"query": None, "document": ""}}, "", "", ""),
        ({"prompts": {"query": "q: ", "document": "d: "}}, "", "q: ", "d: "),
        ({"prompts": {"own": "o: "}, "default_prompt_name": "own"}, "o: ", "o: ", ""),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "query"}, "q: ", "q: ", ""),
        ({"prompts": {"query": ""}, "default_prompt_name": "query"}, "", "", ""),
        ({"prompts": {}}, "", "", ""),
        ({"prompts": None}, "", "", ""),
    ],
)
def test_default_prompts(checkpoint_copy, monkeypatch, changes, default, query, document):
    model = with_settings(checkpoint_copy(), **changes)
    used = []
    monkeypatch.setattr(model, "tokenize", lambda texts, prompt="": used.append(prompt) or [])
    for method in (model.encode, model.encode_query, model.encode_document):
        method([])
    assert used == [default, query, document]


def test_empty_prompt_by_name(checkpoint_copy):
    model = with_settings(checkpoint_copy(), prompts={"query": "q: ", "document": "", "other": None})
    assert model.prompts == {"query": "q: ", "document": "", "other": ""}
    assert model.resolve_prompt("document") == model.resolve_prompt("other") == ""


def test_prompts_is_a_copy(stella):
    stella.prompts["s2p_query"] = "x"
    assert stella.resolve_prompt("s2p_query") != "x"
